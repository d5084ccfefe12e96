//! What is wrong with the curves of a run, with what to do.

use maud::{Markup, html};

use super::super::findings::{Finding, findings};
use super::super::record::RunRecord;

pub(super) fn notices(run: &RunRecord) -> Markup {
    let found = findings(run);
    html! {
        @if !found.is_empty() {
            section.notices {
                h2 { "Notices" }
                @for Finding { title, evidence, advice } in &found {
                    div.notice { p { b { (title) ". " } (evidence) } p { (advice) } }
                }
            }
        }
    }
}
