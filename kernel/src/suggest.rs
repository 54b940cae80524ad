//! "Did you mean": the known name closest to one that is not known.

/// The closest of `known`, if it is close enough to be a slip of the finger: at most a third of the letters, and never
/// more than three, are missing, superfluous, replaced or swapped with a neighbour. Of equals the first by name.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let tolerated = (wanted.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= tolerated)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The closest name as a sentence, or the list of what there is.
pub fn help<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match closest(name, known.clone()) {
        Some(candidate) => format!("did you mean '{candidate}'?"),
        None => format!("known: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_slips_and_nothing_far_fetched() {
        let known = ["origin", "destination", "delay"];
        assert_eq!(closest("orgin", known), Some("origin"));
        assert_eq!(closest("Destinaton", known), Some("destination"));
        assert_eq!(closest("dealy", known), Some("delay"));
        assert_eq!(closest("price", known), None);
        assert_eq!(closest("x", known), None);
        assert!(help("price", known).contains("origin, destination, delay"));
    }
}
