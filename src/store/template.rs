//! SQL with placeholders.

/// Puts values in the places of their `{name}`s, in one pass: a table may have any name, `{now}` too.
pub(super) fn render(template: &str, values: &[(&str, &str)]) -> String {
    let mut sql = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').expect("each brace of a template is closed");
        let value = values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        sql += before;
        sql += value.unwrap_or_else(|| panic!("the placeholder {{{name}}} of a template has no value"));
        rest = after;
    }
    sql + rest
}
