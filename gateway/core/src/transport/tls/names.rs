//! Which certificate is for which name: a name stands for itself, `*.example.com` for every name with one label more
//! than `example.com`.

use std::collections::HashMap;

/// Places in a list by the names that stand for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    exact: HashMap<String, Vec<usize>>,
    /// By what stands behind `*.`.
    wildcard: HashMap<String, Vec<usize>>,
}

impl Names {
    /// Lets a name stand for a place, behind those it stands for already.
    pub(super) fn add(&mut self, name: &str, place: usize) {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.entry(parent.to_owned()).or_default().push(place),
            None => self.exact.entry(name).or_default().push(place),
        }
    }

    /// The places a name stands for: those that name it itself, else those with a wildcard.
    pub(super) fn find(&self, name: &str) -> &[usize] {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(places) = self.exact.get(&name) {
            return places;
        }
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        self.wildcard.get(parent).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_name_comes_before_a_wildcard_which_is_one_label() {
        let mut names = Names::default();
        for (place, name) in ["a.Example.com", "*.example.com", "example.com", "a.example.com"].into_iter().enumerate()
        {
            names.add(name, place);
        }
        for (name, places) in [
            ("A.example.com", &[0, 3][..]),
            ("a.example.com.", &[0, 3]),
            ("b.example.com", &[1]),
            ("example.com", &[2]),
            ("c.b.example.com", &[]),
            ("com", &[]),
            ("", &[]),
            ("*.example.com", &[1]),
        ] {
            assert_eq!(names.find(name), places, "{name}");
        }
    }
}
