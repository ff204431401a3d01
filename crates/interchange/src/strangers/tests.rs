use zip::write::SimpleFileOptions;

use crate::Checkpoint;
use crate::read::read;

/// Pickles, instruction by instruction, as Python writes them.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn class(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(key, value)| [text(key), value.clone()]);
    [b"}(".to_vec(), entries.collect::<Vec<_>>().concat(), b"u".to_vec()].concat()
}

/// A vector of so many 32-bit floats in the storage of this key.
fn tensor(key: &str, count: u8) -> Vec<u8> {
    view(key, count, count.into(), 1)
}

/// A vector of `length` of the 32-bit floats of a storage, each so many behind the one before.
fn view(key: &str, count: u8, length: i32, stride: u8) -> Vec<u8> {
    let storage = [
        b"((".to_vec(),
        text("storage"),
        class("torch", "FloatStorage"),
        text(key),
        text("cpu"),
        vec![b'K', count],
        b"tQ".to_vec(),
    ];
    let rest = [
        b"K\0".to_vec(),
        [b"J", &length.to_le_bytes()[..], b"\x85"].concat(),
        vec![b'K', stride, 0x85],
        vec![0x89],
        class("collections", "OrderedDict"),
        b")RtR".to_vec(),
    ];
    [class("torch._utils", "_rebuild_tensor_v2"), storage.concat(), rest.concat()].concat()
}

/// A checkpoint in the format of today.
fn zipped(object: &[u8]) -> Vec<u8> {
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let numbers = |from: f32| (0..3).flat_map(|i| (from + i as f32).to_le_bytes()).collect::<Vec<u8>>();
    let pickle = [b"\x80\x02", object, b"."].concat();
    for (name, bytes) in [("data.pkl", pickle), ("version", b"3\n".to_vec()), ("data/0", numbers(1.0)), ("data/1", numbers(7.0))]
    {
        out.start_file(format!("net/{name}"), stored).unwrap();
        std::io::Write::write_all(&mut out, &bytes).unwrap();
    }
    out.finish().unwrap().into_inner()
}

/// A checkpoint in the format before.
fn legacy(object: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    let system = [b"\x80\x02".to_vec(), dict(&[("little_endian", vec![0x88])]), b".".to_vec()].concat();
    let keys = [b"\x80\x02](".to_vec(), text("0"), text("1"), b"e.".to_vec()].concat();
    let numbers = |from: f32| (0..3).flat_map(|i| (from + i as f32).to_le_bytes()).collect::<Vec<u8>>();
    let storage = |from: f32| [3_u64.to_le_bytes().to_vec(), numbers(from)].concat();
    let object = [b"\x80\x02", object, b"."].concat();
    [magic, b"\x80\x02M\xe9\x03.".to_vec(), system, object, keys, storage(1.0), storage(7.0)].concat()
}

#[test]
fn objects_of_the_writer_s_own_classes_do_not_hide_the_weights() {
    let weights = || dict(&[("fc.bias", tensor("0", 3))]);
    let recipe = |call: &[u8]| {
        [
            class("distiller.thinning", "ThinningRecipe"),
            b"(".to_vec(),
            dict(&[("fc", tensor("1", 3))]),
            b"t".to_vec(),
            call.to_vec(),
        ]
        .concat()
    };
    let filled = |items: Vec<u8>| [class("my", "Table"), b")\x81".to_vec(), items].concat();
    let state = [class("my", "Trainer"), b")\x81".to_vec(), dict(&[("best", tensor("1", 3))]), b"b".to_vec()].concat();
    let entry = [b"(".to_vec(), text("a"), tensor("1", 3), b"u".to_vec()].concat();
    for (name, object, said) in [
        ("a named tuple", recipe(b"\x81"), "distiller.thinning.ThinningRecipe"),
        ("a call", recipe(b"R"), "distiller.thinning.ThinningRecipe"),
        ("with keywords", recipe(b"}\x92"), "distiller.thinning.ThinningRecipe"),
        ("attributes", state, "my.Trainer"),
        ("a dictionary of its own", filled(entry), "my.Table"),
        ("a list of its own", filled([tensor("1", 3), b"a".to_vec()].concat()), "my.Table"),
        (
            "a namespace",
            [class("argparse", "Namespace"), b")\x81".to_vec(), dict(&[("lr", b"K\x01".to_vec())]), b"b".to_vec()].concat(),
            "argparse.Namespace",
        ),
    ] {
        // First what is unknown, so that what it made of the memo matters to the weights behind it.
        let noted = [object, b"q\x05".to_vec()].concat();
        let whole =
            dict(&[("extras", noted), ("state_dict", weights()), ("again", b"h\x05".to_vec()), ("spare", tensor("1", 3))]);
        for (ending, bytes) in [("pt", zipped(&whole)), ("th", legacy(&whole))] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(format!("net.{ending}"));
            std::fs::write(&path, bytes).unwrap();
            let found = read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["spare", "state_dict.fc.bias"], "{name}");
            assert_eq!(found.tensors["state_dict.fc.bias"].values, [1.0, 2.0, 3.0], "{name}");
            assert!(found.roots.contains("state_dict"), "{name}");
            assert_eq!(found.unread["extras"], format!("an object of the class {said}"), "{name}");
        }
    }
}

/// What is read of a checkpoint in the format of today.
fn found(object: &[u8]) -> Result<Checkpoint, crate::Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pt");
    std::fs::write(&path, zipped(object)).unwrap();
    read(&path)
}

#[test]
fn an_array_of_another_library_is_named_though_nothing_of_it_was_dropped() {
    let array = [class("numpy.core.multiarray", "_reconstruct"), class("numpy", "ndarray"), b"K\0\x85\x86R".to_vec()].concat();
    let found = found(&dict(&[("state_dict", dict(&[("fc.bias", tensor("0", 3)), ("fc.scale", array)]))])).unwrap();
    let named = [("state_dict.fc.scale".to_string(), "an object of the class numpy.core.multiarray._reconstruct".to_string())];
    assert_eq!(found.unread.into_iter().collect::<Vec<_>>(), named);
}

#[test]
fn what_stands_beside_param_groups_is_an_optimizer_s_whatever_its_name() {
    let state = |leaf: &str| dict(&[("0", dict(&[(leaf, tensor("1", 3))]))]);
    let optimizer = dict(&[("state", state("hessian")), ("param_groups", b"]".to_vec())]);
    let found =
        found(&dict(&[("fc.bias", tensor("0", 3)), ("optimizer", optimizer), ("encoder", dict(&[("state", state("bias"))]))]));
    let found = found.unwrap();
    assert!(found.keeps_books("optimizer.state.0.hessian") && !found.keeps_books("encoder.state.0.bias"));
    let part = found.under("optimizer").unwrap();
    assert!(part.tensors.contains_key("state.0.hessian") && part.keeps_books("state.0.hessian"));
}

#[test]
fn the_children_of_a_pickled_module_are_at_the_top() {
    let module = |parameters: &[(&str, Vec<u8>)], children: &[(&str, Vec<u8>)]| {
        let tables = [("_parameters", dict(parameters)), ("_buffers", dict(&[])), ("_modules", dict(children))];
        [class("my", "Net"), b")\x81".to_vec(), dict(&tables), b"b".to_vec()].concat()
    };
    let children = [("fc", module(&[("bias", tensor("0", 3))], &[])), ("prelu", module(&[("weight", tensor("1", 3))], &[]))];
    let found = found(&module(&[("scale", tensor("1", 3))], &children)).unwrap();
    assert_eq!(found.tensors.into_keys().collect::<Vec<_>>(), ["fc.bias", "prelu.weight", "scale"]);
    assert_eq!(found.roots.into_iter().collect::<Vec<_>>(), ["fc", "prelu"]);
}

#[test]
fn views_that_stand_for_more_than_their_file_accounts_for_are_refused_before_they_are_read() {
    let weights = |length: i32| dict(&[("fc.bias", tensor("0", 3)), ("fc.weight", view("1", 3, length, 0))]);
    assert_eq!(found(&weights(1000)).unwrap().tensors["fc.weight"].values, [7.0; 1000]);
    let error = found(&weights(1 << 23)).unwrap_err().to_string();
    assert!(error.contains("net.pt: its tensors stand for 32 MiB") && error.contains("16 MiB at most"), "{error}");
    assert!(error.contains("'fc.weight' of shape [8388608]") && error.contains("save `tensor.clone()`"), "{error}");
}

#[test]
fn a_dictionary_with_defaults_is_a_dictionary() {
    let defaults = [
        class("collections", "defaultdict"),
        class("builtins", "list"),
        b"\x85R(".to_vec(),
        text("fc.bias"),
        tensor("0", 3),
        b"u".to_vec(),
    ]
    .concat();
    assert_eq!(found(&dict(&[("state_dict", defaults)])).unwrap().tensors["state_dict.fc.bias"].values, [1.0, 2.0, 3.0]);
}

#[test]
fn keys_that_are_no_texts_do_not_hide_what_they_lead_to() {
    // {None: 1, (1, 2): a tensor, "fc": another}, all in one go, the first key noted in the memo.
    let odd = [b"}(Nq\x07K\x01K\x01K\x02\x86".to_vec(), tensor("1", 3), text("fc"), tensor("0", 3), b"u".to_vec()].concat();
    let whole = dict(&[("state_dict", odd), ("after", b"h\x07".to_vec())]);
    for (ending, bytes) in [("pt", zipped(&whole)), ("th", legacy(&whole))] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("net.{ending}"));
        std::fs::write(&path, bytes).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["state_dict.(key 1)", "state_dict.fc"]);
        assert_eq!(found.tensors["state_dict.(key 1)"].values, [7.0, 8.0, 9.0]);
    }
}

#[test]
fn damaged_pickles_are_refused_and_never_walked_out_of() {
    let whole = dict(&[
        ("extras", [class("my", "Own"), tensor("1", 3), b"\x85R".to_vec()].concat()),
        ("state_dict", dict(&[("b", tensor("0", 3))])),
    ]);
    let pickle = [b"\x80\x02", &whole[..], b"."].concat();
    assert!(super::Walk::of(&pickle).is_some_and(|walk| walk.changed() && walk.length == pickle.len()));
    for length in 0..pickle.len() {
        assert!(super::Walk::of(&pickle[..length]).is_none(), "{length} bytes");
    }
    for position in 0..pickle.len() {
        for value in 0..=255 {
            let mut forged = pickle.clone();
            forged[position] = value;
            // Whatever comes of it, no panic.
            drop(super::Walk::of(&forged));
        }
    }
}

#[test]
fn a_length_beyond_all_numbers_is_refused_and_not_added_to() {
    let forged = [&[0x80, 2, 0x8d, 0xf7][..], &[0xff; 7], b"."].concat();
    assert!(super::Walk::of(&forged).is_none());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pt");
    std::fs::write(&path, include_bytes!("../../../../fuzz/corpus/checkpoint/length")).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("net.pt: not a PyTorch checkpoint"));
}
