//! The page: one file without scripts, for someone who wants to know what came out.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::contact_sheet::Tile;
use super::curves::{COLOURS, inline, plots, themed_rules};
use super::record::{Looked, RunRecord, TestRecord};
use crate::error::Result;
use crate::train::{Metric, Recipe};

/// What a page that compares runs says besides its results.
#[derive(Debug, Clone, Default)]
pub struct Introduction {
    /// The page's heading.
    pub title: String,
    /// A paragraph below it.
    pub lead: String,
    /// What comes after the results.
    pub sections: Vec<Section>,
}

/// A part of the page: words and rows of pictures.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Its heading.
    pub heading: String,
    /// A paragraph.
    pub text: String,
    /// Rows of pictures.
    pub pictures: Vec<Vec<Tile>>,
}

/// A matrix of more classes than this is shown as a list of the most frequent confusions.
const WIDEST_MATRIX: usize = 24;
const LISTED: usize = 20;

/// One run.
///
/// # Errors
/// When a picture cannot be written as JPEG.
pub fn run_page(run: &RunRecord) -> Result<String> {
    let title = match run.epochs().last() {
        Some(_) => {
            format!("{}: {}", run.name, run.config.classes.iter().take(4).cloned().collect::<Vec<_>>().join(", "))
        }
        None => format!("{}: not one epoch yet", run.name),
    };
    let body = html! {
        header {
            p.eyebrow { "retune" }
            h1 { (headline(run)) }
            p.lead { (lead(run)) }
        }
        (results(run))
        (curves(&[run]))
        (confusion(run))
        (mistakes(run, None)?)
        (looks(run)?)
        (pictures(run)?)
        (recipe(run))
        (use_of(run))
    };
    Ok(document(&title, &body))
}

/// Several runs beside each other.
///
/// # Errors
/// When a picture cannot be written as JPEG.
pub fn comparison_page(introduction: &Introduction, runs: &[&RunRecord]) -> Result<String> {
    let body = html! {
        header {
            p.eyebrow { "retune" }
            h1 { (introduction.title) }
            @if !introduction.lead.is_empty() { p.lead { (introduction.lead) } }
        }
        (comparison(runs))
        (curves(runs))
        (differences(runs))
        @for section in &introduction.sections { (section_of(section)?) }
        @for run in runs {
            @if runs.len() <= 4 {
                @if let Ok(test) = &run.test {
                    section {
                        h2 { (run.name) ": what it gets right and wrong" }
                        (matrix(run, test))
                    }
                }
            }
        }
        @if let Some(best) = runs.iter().max_by(|a, b| best_accuracy(a).total_cmp(&best_accuracy(b))) {
            (mistakes(best, Some(&best.name))?)
            (looks(best)?)
        }
    };
    Ok(document(&introduction.title, &body))
}

fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(concat!("retune ", env!("CARGO_PKG_VERSION")));
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(themed_rules())) }
            }
            body {
                main { (body) }
                footer { "Made by retune " (env!("CARGO_PKG_VERSION")) ". Everything on this page is in this one file." }
            }
        }
    };
    page.into_string()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn best_accuracy(run: &RunRecord) -> f64 {
    let accuracies =
        run.epochs().map(|metric| if let Metric::Epoch { test_acc, .. } = metric { *test_acc } else { 0.0 });
    accuracies.fold(0.0, f64::max)
}

fn headline(run: &RunRecord) -> String {
    match run.epochs().last() {
        Some(_) => format!("{} of the test pictures recognised", percent(best_accuracy(run))),
        None => "This run has not finished an epoch yet".into(),
    }
}

fn lead(run: &RunRecord) -> String {
    let config = &run.config;
    let beginning = match (&config.weights, config.recipe.from_scratch) {
        (_, true) => "from random weights".to_string(),
        (Some(weights), false) => {
            let name = weights.file_name().unwrap_or(weights.as_os_str()).to_string_lossy();
            // Models of runs all have the same name; their folders tell them apart.
            let folder = weights.parent().and_then(|folder| folder.file_name()).map(|folder| folder.to_string_lossy());
            match folder {
                Some(folder) if name == "model.safetensors" => format!("beginning with {folder}/{name}"),
                _ => format!("beginning with {name}"),
            }
        }
        (None, false) => "beginning with trained weights".into(),
    };
    format!(
        "A {} learnt to tell {} apart, {beginning}. It saw {}, again and again in changing crops; then it was asked about {} \
         that it had never seen.",
        network_name(&config.recipe),
        counted(config.classes.len(), "kind of picture", "kinds of pictures"),
        counted(config.train_images, "picture", "pictures"),
        counted(config.test_images, "picture", "pictures"),
    )
}

fn network_name(recipe: &Recipe) -> String {
    let name = match recipe.architecture.as_str() {
        "resnet18" => "ResNet-18",
        "resnet34" => "ResNet-34",
        other => other,
    };
    if recipe.width == 64 { name.into() } else { format!("{name} of width {}", recipe.width) }
}

fn results(run: &RunRecord) -> Markup {
    let Some(Metric::Epoch { epoch, train_loss, train_acc, test_acc, images_per_second, .. }) = run.epochs().last()
    else {
        return html! {};
    };
    let wanted = run.config.recipe.epochs;
    html! {
        section {
            h2 { "The result" }
            dl.figures {
                div { dt { "best test accuracy" } dd { (percent(best_accuracy(run))) } }
                div { dt { "last test accuracy" } dd { (percent(*test_acc)) } }
                div { dt { "training accuracy" } dd { (percent(*train_acc)) } }
                div { dt { "training loss" } dd { (format!("{train_loss:.3}")) } }
                div { dt { "pictures a second" } dd { (format!("{images_per_second:.1}")) } }
                div { dt { "epochs" } dd { (epoch) @if *epoch < wanted { " of " (wanted) } } }
            }
            p.line {
                (format!(
                    "loss {train_loss:.3}, train acc {train_acc:.3}, test acc {test_acc:.3}; {images_per_second:.1} examples/sec on {}",
                    run.config.device
                ))
            }
            p.note {
                "Accuracy is the share of pictures whose class was named rightly. The model that is kept is that of the epoch with the \
                 best test accuracy, which flatters it a little. Training pictures are harder than test pictures: they are cropped at \
                 random."
            }
        }
    }
}

fn curves(runs: &[&RunRecord]) -> Markup {
    if runs.iter().all(|run| run.metrics.is_empty()) {
        return html! {};
    }
    let [loss, accuracy] = plots(runs);
    html! {
        section {
            h2 { "How it learnt" }
            div.plots {
                (PreEscaped(inline(&loss, "loss over the epochs")))
                (PreEscaped(inline(&accuracy, "accuracy over the epochs")))
            }
            p.note {
                "An epoch is one pass over all training pictures. Dashed: training, averaged since the epoch began. Solid: test, after \
                 each epoch. The loss says how surprised the network was by the right answers; less is better."
            }
        }
    }
}

fn confusion(run: &RunRecord) -> Markup {
    html! {
        section {
            h2 { "Who is taken for whom" }
            @match &run.test {
                Ok(test) => (matrix(run, test)),
                Err(reason) => p.missing { "Not known: " (reason) },
            }
        }
    }
}

fn matrix(run: &RunRecord, test: &TestRecord) -> Markup {
    let classes = &run.config.classes;
    let rows = test.confusion.rows();
    let heat = |count: usize, row: &[usize]| {
        let all: usize = row.iter().sum();
        if all == 0 { 0.0 } else { 100.0 * count as f64 / all as f64 }
    };
    let mut confused: Vec<(usize, usize, usize)> = Vec::new();
    for (truth, row) in rows.iter().enumerate() {
        confused.extend(
            row.iter()
                .enumerate()
                .filter(|(said, count)| *said != truth && **count > 0)
                .map(|(said, &count)| (count, truth, said)),
        );
    }
    confused.sort_by(|a, b| b.cmp(a));
    html! {
        @if classes.len() <= WIDEST_MATRIX {
            div.scroll {
                table.matrix {
                    thead {
                        tr { th {} th.over colspan=(classes.len()) { "was taken for" } }
                        tr { th scope="col" { "a picture of" } @for class in classes { th.said scope="col" { span { (class) } } } }
                    }
                    tbody {
                        @for (truth, row) in rows.iter().enumerate() {
                            tr {
                                th scope="row" { (classes[truth]) }
                                @for (said, &count) in row.iter().enumerate() {
                                    td.right[said == truth].zero[count == 0] style=(format!("--heat:{:.0}%", heat(count, row))) { (count) }
                                }
                            }
                        }
                    }
                }
            }
        } @else {
            p { "Most frequent confusions:" }
            div.scroll {
                table {
                    thead { tr { th { "a picture of" } th { "was taken for" } th.number { "times" } } }
                    tbody {
                        @for (count, truth, said) in confused.iter().take(LISTED) {
                            tr { td { (classes[*truth]) } td { (classes[*said]) } td.number { (count) } }
                        }
                    }
                }
            }
        }
        details open[classes.len() <= 12] {
            summary { "Each class" }
            div.scroll {
                table {
                    thead { tr { th { "class" } th.number { "test pictures" } th.number { "recognised" } th.number { "right when said" } th.number { "F1" } } }
                    tbody {
                        @for class in test.confusion.classes(classes) {
                            tr {
                                td { (class.class) }
                                td.number { (class.images) }
                                @if class.images == 0 { td.number { "–" } } @else { td.number { (percent(class.recall)) } }
                                td.number { (percent(class.precision)) }
                                td.number { (format!("{:.3}", class.f1)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn mistakes(run: &RunRecord, name: Option<&str>) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    if test.mistakes.is_empty() {
        return Ok(html! { section { h2 { "Mistakes" } p { "There was none." } } });
    }
    let mut figures = Vec::new();
    for looked in &test.mistakes {
        figures.push((looked, looked.tile.data_uri()?));
    }
    Ok(html! {
        section {
            h2 { "The surest mistakes" }
            p { "Test pictures about which the network was wrong, and most certain." @if let Some(name) = name { " This is " (name) "." } }
            div.gallery {
                @for (looked, source) in &figures {
                    figure {
                        img src=(source) alt=(format!("{}, taken for {}", looked.truth, looked.said)) width=(looked.tile.size) height=(looked.tile.size);
                        figcaption {
                            b { (looked.said) } " " (percent(looked.probability)) br;
                            span.truth { "is " (looked.truth) } br;
                            span.file { (file_name(looked)) }
                        }
                    }
                }
            }
        }
    })
}

fn file_name(looked: &Looked) -> String {
    looked.path.file_name().unwrap_or(looked.path.as_os_str()).to_string_lossy().into_owned()
}

fn looks(run: &RunRecord) -> Result<Markup> {
    let Ok(test) = &run.test else { return Ok(html! {}) };
    let mut figures = Vec::new();
    for looked in &test.looks {
        if let Some(attention) = &looked.attention {
            figures.push((looked, looked.tile.data_uri()?, attention.data_uri()?));
        }
    }
    if figures.is_empty() {
        return Ok(html! {});
    }
    Ok(html! {
        section {
            h2 { "Where it looked" }
            p {
                "The lit places spoke most for the answer (Grad-CAM, from the network's own gradients). They are coarse: the network's \
                 last map of the picture has few fields."
            }
            div.gallery.pairs {
                @for (looked, picture, attention) in &figures {
                    figure {
                        div {
                            img src=(picture) alt=(looked.truth) width=(looked.tile.size) height=(looked.tile.size);
                            img src=(attention) alt=(format!("where the network looked to say {}", looked.said)) width=(looked.tile.size) height=(looked.tile.size);
                        }
                        figcaption {
                            b { (looked.said) } " " (percent(looked.probability)) br;
                            @if looked.said == looked.truth { span.truth.right { "right" } } @else { span.truth { "is " (looked.truth) } }
                        }
                    }
                }
            }
        }
    })
}

fn gallery(rows: &[Vec<Tile>]) -> Result<Markup> {
    let mut tiles = Vec::new();
    for row in rows.iter().filter(|row| !row.is_empty()) {
        let row: Result<Vec<(&Tile, String)>> = row.iter().map(|tile| Ok((tile, tile.data_uri()?))).collect();
        tiles.push(row?);
    }
    Ok(html! {
        @for row in &tiles {
            div.sheet {
                @for (tile, source) in row {
                    figure {
                        img src=(source) alt=(tile.label) width=(tile.size) height=(tile.size);
                        figcaption { (tile.label) }
                    }
                }
            }
        }
    })
}

fn section_of(section: &Section) -> Result<Markup> {
    let gallery = gallery(&section.pictures)?;
    Ok(html! {
        section {
            h2 { (section.heading) }
            @if !section.text.is_empty() { p { (section.text) } }
            (gallery)
        }
    })
}

/// Files that could not be read, and why.
fn left_out(skipped: &[(&str, &str)]) -> Markup {
    html! {
        @if !skipped.is_empty() {
            h3 { (counted(skipped.len(), "picture", "pictures")) " left out, because unreadable" }
            ul { @for (path, reason) in skipped { li { code { (path) } ": " (reason) } } }
        }
    }
}

fn pictures(run: &RunRecord) -> Result<Markup> {
    let skipped: Vec<_> = run.skipped().collect();
    let pictures = match &run.pictures {
        Ok(pictures) => pictures,
        Err(reason) => {
            return Ok(html! {
                section {
                    h2 { "The pictures" }
                    p.missing { "They are not shown: " (reason) }
                    (left_out(&skipped))
                }
            });
        }
    };
    let (sheet, augmented) = (gallery(&pictures.sheet)?, gallery(&pictures.augmented)?);
    let counts = run.config.classes.iter().zip(pictures.train_counts.iter().zip(&pictures.test_counts));
    let unseen = run.config.classes.len() > pictures.sheet.len();
    Ok(html! {
        section {
            h2 { "The pictures" }
            div.scroll {
                table {
                    thead { tr { th { "class" } th.number { "to train on" } th.number { "to test with" } } }
                    tbody {
                        @for (class, (train, test)) in counts {
                            tr { td { (class) } td.number { (train) } td.number { (test) } }
                        }
                    }
                }
            }
            (sheet)
            @if unseen { p.note { "The first classes only." } }
            h3 { "What the network saw of them" }
            p {
                "In every epoch another random part of each picture, scaled to " (run.config.recipe.image_size) " x "
                (run.config.recipe.image_size) " pixels and sometimes mirrored. These are those of the first epoch."
            }
            (augmented)
            (left_out(&skipped))
            p.note { "Pictures are read as torchvision reads them: a camera's note about rotation (EXIF) is not followed." }
        }
    })
}

fn recipe_rows(recipe: &Recipe) -> Vec<(&'static str, String, &'static str)> {
    let head = recipe.learning_rate * recipe.head_lr_multiplier;
    vec![
        ("network", network_name(recipe), "its shape; the weights are what is learnt"),
        (
            "begins with",
            if recipe.from_scratch { "random weights" } else { "trained weights" }.into(),
            "what it knew before",
        ),
        ("epochs", recipe.epochs.to_string(), "passes over the training pictures"),
        ("batch size", recipe.batch_size.to_string(), "pictures a step"),
        ("learning rate", format!("{:e}", recipe.learning_rate), "how far a step goes"),
        ("learning rate of the head", format!("{head:e}"), "the last layer, which names the classes"),
        ("momentum", recipe.momentum.to_string(), "how much of the last step goes on"),
        ("weight decay", format!("{:e}", recipe.weight_decay), "how strongly weights are pulled to zero"),
        ("loss of a batch", recipe.loss_reduction.clone(), "sum or mean of the pictures' losses"),
        (
            "gradients clipped to",
            recipe.clip_gradient_norm.map_or("no".into(), |norm| norm.to_string()),
            "the longest step",
        ),
        (
            "frozen",
            if recipe.freeze.is_empty() { "nothing".into() } else { recipe.freeze.join(", ") },
            "layers that stay as they were",
        ),
        ("picture size", format!("{0} x {0}", recipe.image_size), "what the network sees"),
        (
            "EXIF orientation",
            if recipe.exif { "followed" } else { "ignored, as torchvision does" }.into(),
            "whether photos are turned as the camera was held",
        ),
        ("seed", recipe.seed.to_string(), "the same seed gives the same result"),
    ]
}

fn recipe(run: &RunRecord) -> Markup {
    let config = &run.config;
    html! {
        section {
            h2 { "The recipe" }
            div.scroll {
                table {
                    tbody {
                        @for (name, value, meaning) in recipe_rows(&config.recipe) {
                            tr { th scope="row" { (name) } td { (value) } td.meaning { (meaning) } }
                        }
                        tr { th scope="row" { "device" } td { (config.device) ", " (config.precision) } td.meaning { "where it was computed" } }
                        tr { th scope="row" { "program" } td { "retune " (config.retune) } td.meaning { "that began the run" } }
                    }
                }
            }
        }
    }
}

fn use_of(run: &RunRecord) -> Markup {
    let model = run.folder.join("model.safetensors");
    html! {
        section {
            h2 { "Using the model" }
            pre { code {
                "retune predict " (model.display()) " new.jpg\n"
                "retune eval " (model.display()) " more-photos\n"
                "retune convert " (model.display()) " model.onnx"
            } }
            p {
                "In Python: " code { "net = torchvision.models.resnet18(num_classes=" (run.config.classes.len()) ")" }
                ", then " code { "net.load_state_dict(safetensors.torch.load_file(\"model.safetensors\"))" } "."
                @if run.config.recipe.width != 64 { " (This one is narrower than torchvision's; only retune knows it.)" }
            }
        }
    }
}

fn comparison(runs: &[&RunRecord]) -> Markup {
    html! {
        section {
            h2 { "The results" }
            div.bars {
                @for (index, run) in runs.iter().enumerate() {
                    div.bar {
                        span.name { (run.name) }
                        span.track { span class=(format!("fill b{}", index % COLOURS)) style=(format!("width:{:.1}%", 100.0 * last_accuracy(run))) {} }
                        span.value { (percent(last_accuracy(run))) }
                    }
                }
            }
            p.note { "The share of test pictures that was recognised after the last epoch." }
            div.scroll {
                table {
                    thead { tr { th { "run" } th.number { "last test accuracy" } th.number { "best" } th.number { "training accuracy" } th.number { "training loss" } th.number { "epochs" } } }
                    tbody {
                        @for run in runs {
                            @match run.epochs().last() {
                                Some(Metric::Epoch { epoch, train_loss, train_acc, test_acc, .. }) => tr {
                                    td { (run.name) }
                                    td.number { (percent(*test_acc)) }
                                    td.number { (percent(best_accuracy(run))) }
                                    td.number { (percent(*train_acc)) }
                                    td.number { (format!("{train_loss:.3}")) }
                                    td.number { (epoch) }
                                },
                                _ => tr { td { (run.name) } td colspan="5" { "no epoch yet" } },
                            }
                        }
                    }
                }
            }
        }
    }
}

fn last_accuracy(run: &RunRecord) -> f64 {
    match run.epochs().last() {
        Some(Metric::Epoch { test_acc, .. }) => *test_acc,
        _ => 0.0,
    }
}

/// The recipes side by side, as far as they differ.
fn differences(runs: &[&RunRecord]) -> Markup {
    let recipes: Vec<_> = runs.iter().map(|run| recipe_rows(&run.config.recipe)).collect();
    let Some(first) = recipes.first() else { return html! {} };
    let differs = |row: &usize| recipes.iter().any(|recipe| recipe[*row].1 != first[*row].1);
    let (different, same): (Vec<usize>, Vec<usize>) = (0..first.len()).partition(differs);
    html! {
        section {
            h2 { "What was different" }
            div.scroll {
                table {
                    thead { tr { th {} @for run in runs { th { (run.name) } } } }
                    tbody {
                        @for row in different {
                            tr { th scope="row" { (first[row].0) } @for recipe in &recipes { td { (recipe[row].1) } } }
                        }
                    }
                }
            }
            p.note {
                "The same for all: "
                (same.iter().map(|&row| format!("{} {}", first[row].0, first[row].1)).collect::<Vec<_>>().join("; ")) "."
            }
        }
    }
}

const STYLE: &str = "\
:root{--paper:#fff;--ink:#18181b;--soft:#52525b;--faint:#e4e4e7;--wash:#f4f4f5;--accent:#c2410c;--good:29 78 216;\
--c0:#c2410c;--c1:#1d4ed8;--c2:#047857;--c3:#7e22ce;--c4:#a16207;--c5:#be185d}\
@media(prefers-color-scheme:dark){:root{--paper:#18181b;--ink:#f4f4f5;--soft:#a1a1aa;--faint:#3f3f46;--wash:#27272a;\
--accent:#fb923c;--good:124 176 255;--c0:#fb923c;--c1:#7cb0ff;--c2:#4ade80;--c3:#c99bff;--c4:#facc15;--c5:#f78fc0}}\
*{box-sizing:border-box}\
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;\
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}\
main,footer{max-width:960px;margin:0 auto;padding:0 20px}\
header{padding:56px 0 8px}.eyebrow{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em}\
h1{font-size:clamp(28px,5vw,44px);line-height:1.15;margin:.2em 0 .4em;letter-spacing:-.02em;overflow-wrap:anywhere}\
.lead{font-size:18px;color:var(--soft);max-width:42em;margin:0}\
section{margin:48px 0}h2{font-size:22px;line-height:1.3;margin:0 0 14px;letter-spacing:-.01em;overflow-wrap:anywhere}\
h3{font-size:17px;margin:28px 0 6px}p{max-width:44em;margin:10px 0}\
.note{color:var(--soft);font-size:14px}.missing{color:var(--soft);border-left:3px solid var(--accent);padding-left:12px;overflow-wrap:anywhere}\
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:1px;background:var(--faint);\
border:1px solid var(--faint);border-radius:10px;overflow:hidden;margin:0}\
.figures div{background:var(--paper);padding:14px 16px}.figures dt{color:var(--soft);font-size:13px;line-height:1.3}\
.figures dd{margin:4px 0 0;font-size:24px;font-weight:600;letter-spacing:-.01em}\
.line,pre{font:14px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--wash);border-radius:8px;\
padding:10px 14px;overflow-x:auto;max-width:none}code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.9em;\
overflow-wrap:anywhere}pre code{font-size:14px}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:20px}.plots svg{width:100%;height:auto}\
.scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:15px}\
th,td{text-align:left;padding:7px 18px 7px 0;border-bottom:1px solid var(--faint);vertical-align:top;max-width:22em;overflow-wrap:break-word}\
th{font-weight:600}thead th{color:var(--soft);font-size:13px;font-weight:500}.number{text-align:right}.meaning{color:var(--soft)}\
.matrix td{min-width:52px;text-align:center;padding:8px;border:2px solid var(--paper);border-radius:4px;\
background:color-mix(in srgb,var(--accent) calc(var(--heat)*.85),var(--wash))}\
.matrix td.right{background:color-mix(in srgb,rgb(var(--good)) calc(var(--heat)*.6),var(--wash))}\
.matrix td.zero{color:var(--soft)}.matrix th{border:0;max-width:12em}.matrix .over{color:var(--soft);font-weight:500;text-align:left}\
.matrix .said{padding-right:8px;text-align:center;vertical-align:bottom}\
details{margin-top:18px}summary{cursor:pointer;color:var(--soft);margin-bottom:8px}\
figure{margin:0;min-width:0}img{display:block;width:100%;height:auto;border-radius:6px;background:var(--wash)}\
figcaption{font-size:13px;line-height:1.45;margin-top:6px;overflow-wrap:anywhere}\
.truth{color:var(--accent)}.truth.right{color:rgb(var(--good))}.file{color:var(--soft);font-size:12px}\
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:18px 14px}\
.gallery.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr))}.pairs figure>div{display:grid;grid-template-columns:1fr 1fr;gap:4px}\
.sheet{display:grid;grid-template-columns:repeat(8,1fr);gap:8px;margin:10px 0}.sheet figcaption{color:var(--soft);font-size:12px;margin-top:3px}\
.bars{margin:6px 0 12px}.bar{display:grid;grid-template-columns:minmax(90px,150px) 1fr 64px;gap:12px;align-items:center;margin:8px 0}\
.track{background:var(--wash);border-radius:6px;height:22px;overflow:hidden}.fill{display:block;height:100%;border-radius:6px}\
.b0{background:var(--c0)}.b1{background:var(--c1)}.b2{background:var(--c2)}.b3{background:var(--c3)}.b4{background:var(--c4)}.b5{background:var(--c5)}\
.bar .value{text-align:right;font-weight:600}.bar .name{overflow-wrap:anywhere}\
footer{color:var(--soft);font-size:13px;padding-top:8px;padding-bottom:48px}ul{padding-left:1.2em}li{overflow-wrap:anywhere}\
@media(max-width:640px){.sheet{grid-template-columns:repeat(4,1fr)}header{padding-top:32px}section{margin:36px 0}}\
@media print{body{font-size:12px}section,figure,.plots svg{break-inside:avoid}.scroll{overflow:visible}main{max-width:none}header{padding-top:0}\
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}";
