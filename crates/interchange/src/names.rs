//! What the names of modules say about their order.

use std::cmp::Ordering;

/// A run of digits or of letters of a name; whatever else stands between them is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// Without leading zeros, so that longer is larger.
    Number(&'a str),
    Word(&'a str),
}

impl Ord for Token<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Token::Number(a), Token::Number(b)) => (a.len(), a).cmp(&(b.len(), b)),
            (Token::Word(a), Token::Word(b)) => a.cmp(b),
            (Token::Number(_), Token::Word(_)) => Ordering::Less,
            (Token::Word(_), Token::Number(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Token<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn tokens(name: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for part in name.split(|c: char| !c.is_alphanumeric()) {
        let mut rest = part;
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (token, after) = rest.split_at(end);
            tokens.push(if digits { Token::Number(token.trim_start_matches('0')) } else { Token::Word(token) });
            rest = after;
        }
    }
    tokens
}

/// Natural order: numbers anywhere in a name count as numbers, `stage1_unit2` before `stage1_unit10`.
pub(crate) fn natural(a: &str, b: &str) -> Ordering {
    tokens(a).cmp(&tokens(b)).then_with(|| a.cmp(b))
}

/// Whether the names are numbered against each other, so that one surely comes before the other: where they part, a number, a single
/// letter, or the end stands against a number or letter. The order of words is an accident.
pub(crate) fn numbered(a: &str, b: &str) -> bool {
    let (a, b) = (tokens(a), tokens(b));
    let parted = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    let letter = |word: &str| word.len() == 1;
    match (a.get(parted), b.get(parted)) {
        (Some(Token::Number(_)), Some(Token::Number(_)) | None) | (None, Some(Token::Number(_))) => true,
        (Some(Token::Word(a)), Some(Token::Word(b))) => letter(a) && letter(b),
        (Some(Token::Number(_)), Some(Token::Word(_)))
        | (Some(Token::Word(_)), Some(Token::Number(_)) | None)
        | (None, Some(Token::Word(_)) | None) => false,
    }
}

/// Whether a normalization of this name belongs to the layer of that one: `bn1` to `conv1`, `conv1.norm` to `conv1`, `features.1` to
/// `features.0`.
pub(crate) fn partners(layer: &str, norm: &str) -> bool {
    const KINDS: [&str; 12] =
        ["conv", "convolution", "bn", "norm", "batchnorm", "batch", "normalization", "fc", "linear", "dense", "gn", "ln"];
    let place = |name| tokens(name).into_iter().filter(|t| !matches!(t, Token::Word(w) if KINDS.contains(w))).collect::<Vec<_>>();
    let numbered = |name: &'_ str| -> Option<(String, u64)> {
        let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
        Some((parent.to_string(), last.parse().ok()?))
    };
    let behind = match (numbered(layer), numbered(norm)) {
        (Some((parent, at)), Some((other, next))) => parent == other && at.checked_add(1) == Some(next),
        _ => false,
    };
    behind || place(layer) == place(norm)
}

/// The dotted prefix that all names have in common, without the last part of any.
pub(crate) fn shared<'a>(mut names: impl Iterator<Item = &'a str>) -> &'a str {
    let parent = |name: &'a str| name.rsplit_once('.').map_or("", |(parent, _)| parent);
    let Some(mut prefix) = names.next().map(parent) else { return "" };
    for name in names {
        while !(prefix.is_empty() || below(name, prefix).is_some()) {
            prefix = parent(prefix);
        }
    }
    prefix
}

/// What follows the prefix and a dot.
pub(crate) fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('.') }
}

/// Whether the tensor belongs to an optimizer or only counts: `optimizer.state.0.momentum_buffer`, `bn1.num_batches_tracked`. A module may
/// be called `state`, too; what optimizers call their tensors tells the two apart.
pub(crate) fn bookkeeping(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &str| part.parse::<i64>().is_ok();
    let slot = parts.windows(3).any(|parts| parts[0] == "state" && number(parts[1]) && SLOTS.contains(&parts[2]));
    slot || parts.contains(&"param_groups") || parts.last() == Some(&"num_batches_tracked")
}

/// What PyTorch's optimizers keep of a parameter, but for names as short as `d`, which a module may have as well.
const SLOTS: [&str; 18] = [
    "step",
    "momentum_buffer",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "mu_product",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "sum",
    "step_size",
    "row_var",
    "col_var",
    "old_dirs",
    "old_stps",
    "prev_flat_grad",
    "H_diag",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers_wherever_they_stand() {
        let sorted = |mut names: Vec<&'static str>| {
            names.sort_by(|a, b| natural(a, b));
            names
        };
        let names = vec!["layer10.conv1", "layer2.conv1", "conv1", "features.3", "features.12", "layer2.conv2"];
        assert_eq!(sorted(names), ["conv1", "features.3", "features.12", "layer2.conv1", "layer2.conv2", "layer10.conv1"]);
        let names = vec!["stage1_unit10_conv1", "stage1_unit1_conv1", "stage1_unit2_conv1", "stage1_unit010_conv0"];
        assert_eq!(sorted(names), ["stage1_unit1_conv1", "stage1_unit2_conv1", "stage1_unit010_conv0", "stage1_unit10_conv1"]);
    }

    #[test]
    fn only_numbers_tell_an_order() {
        assert!(
            numbered("stage1_unit9_conv2", "stage1_unit10_conv1") && numbered("dense", "dense_1") && numbered("conv_a", "conv_b")
        );
        assert!(!numbered("encoder.0", "decoder.0") && !numbered("stem", "stage1_unit1") && !numbered("a.0", "a.weight"));
    }

    #[test]
    fn norms_go_with_their_layers() {
        for (layer, norm) in [
            ("conv1", "bn1"),
            ("layer1.0.conv2", "layer1.0.bn2"),
            ("conv1", "conv1.norm"),
            ("features.0", "features.1"),
            ("stage1_unit10_conv1", "stage1_unit10_bn1"),
            ("block.conv", "block.bn"),
        ] {
            assert!(partners(layer, norm), "{layer} and {norm}");
        }
        assert!(!partners("conv1", "bn2") && !partners("features.0", "features.2") && !partners("a.0", "b.1"));
    }

    #[test]
    fn a_module_called_state_is_no_optimizer() {
        assert!(!bookkeeping("encoder.state.0.weight") && !bookkeeping("state.1.running_mean") && !bookkeeping("state.2.bias"));
    }

    #[test]
    fn what_optimizers_keep_is_no_weight() {
        assert!(bookkeeping("optimizer.state.0.momentum_buffer") && bookkeeping("opt.state.17.exp_avg"));
        assert!(bookkeeping("module.bn1.num_batches_tracked"));
        assert!(bookkeeping("state.0.old_dirs.3") && bookkeeping("optimizer.param_groups.0.lr"));
        assert!(!bookkeeping("state_dict.0.weight") && !bookkeeping("state.encoder.weight"));
        assert_eq!(shared(["a.b.c", "a.b.d.e", "a.bc.d"].into_iter()), "a");
        assert_eq!((below("a.b.c", "a.b"), below("a.bc", "a.b"), below("x", "")), (Some("c"), None, Some("x")));
    }
}
