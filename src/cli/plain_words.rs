//! Messages about values that cannot be parsed.

/// The same message without the standard library's words for what is not a number.
pub fn in_plain_words(message: String) -> String {
    let words = [
        ("invalid digit found in string", "expected a whole number that is not negative"),
        ("invalid float literal", "expected a number"),
        ("cannot parse integer from empty string", "expected a number"),
        ("cannot parse float from empty string", "expected a number"),
        ("number too large to fit in target type", "the number is too large"),
    ];
    words.into_iter().fold(message, |message, (technical, plain)| message.replace(technical, plain))
}
