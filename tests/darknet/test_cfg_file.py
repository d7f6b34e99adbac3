"""Reading and writing .cfg files: what is taken, what is noted, what is refused, each with its line."""

from __future__ import annotations

import os

import pytest

from detector.darknet import cfg_file
from detector.darknet.cfg_file import DarknetCfg, find_cfg, parse_cfg, read_cfg
from detector.darknet.sections import SECTION_TYPES, ConvolutionalSection, YoloSection
from detector.errors import DarknetError

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n"
YOLO = "[yolo]\nnum=2\nclasses=1\nanchors=1,2,3,4\n"


def parsed(text: str) -> DarknetCfg:
    return parse_cfg(text, "n.cfg")


def mistakes(text: str) -> list[str]:
    with pytest.raises(DarknetError) as caught:
        parsed(text)
    return str(caught.value).splitlines()


# --- accepted texts ---------------------------------------------------------------------------------------------------


def test_sections_keep_their_order_lines_and_types():
    cfg = parsed(NET + "\n" + CONV + "# comment\n" + YOLO)
    assert (cfg.net.width, cfg.net.line) == (32, 1)
    conv, yolo = cfg.layers
    assert conv == ConvolutionalSection(filters=8, size=3, pad=True, activation="leaky")
    assert yolo == YoloSection(num=2, classes=1, anchors=((1.0, 2.0), (3.0, 4.0)))
    assert (conv.line, yolo.line) == (6, 12)
    assert cfg.warnings == ()
    assert cfg.place(conv) == "n.cfg:6: [convolutional]"


def test_comments_spaces_carriage_returns_and_a_byte_order_mark_are_ignored():
    text = "\ufeff" + "; note\n  # note\n" + NET + CONV + YOLO
    text = text.replace("=", " = ").replace("1,2,3,4", "1, 2,  3 ,4  # pairs").replace("[net]", " [ net ] # x")
    cfg = parsed(text.replace("\n", "\r\n"))
    assert cfg == parsed(NET + CONV + YOLO)
    assert cfg.warnings == ()


@pytest.mark.parametrize(
    ("short", "name"),
    [("conv", "convolutional"), ("max", "maxpool"), ("avg", "avgpool"), ("local_avg", "local_avgpool")],
)
def test_short_section_names_mean_the_long_ones(short, name):
    cfg = parsed(NET.replace("net", "network") + f"[{short}]\n")
    assert type(cfg.layers[0]) is SECTION_TYPES[name]


def test_aliases_of_words_are_resolved():
    text = NET + CONV * 2 + "[shortcut]\nfrom=-2\nweights_type=per_layer\nweights_normalization=avg_relu\n"
    shortcut = parsed(text).layers[2]
    assert (shortcut.weights_type, shortcut.weights_normalization) == ("per_feature", "relu")


def test_floats_may_have_exponents_and_no_leading_zero():
    net = parsed(NET + "learning_rate=1e-4\nhue=.1\ndecay=+5.E-4\n" + CONV).net
    assert (net.learning_rate, net.hue, net.decay) == (1e-4, 0.1, 5e-4)


def test_relative_references_are_resolved_against_their_own_section():
    cfg = parsed(NET + CONV * 3 + "[route]\nlayers=-1, 0,-3\n[shortcut]\nfrom=-4\n[sam]\nfrom=2\n")
    assert [cfg.sources(i) for i in range(6)] == [(), (), (), (2, 0, 0), (0,), (2,)]


def test_harmless_value_of_a_refused_key_is_accepted():
    cfg = parsed(NET + "track=0\ntime_steps=1\n" + CONV + "xnor=0\nstream=3\n")
    assert cfg == parsed(NET + CONV)
    assert cfg.warnings == ()


# --- warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("filtres=3", "n.cfg:10: [convolutional] 'filtres' is an unknown key and is ignored; did you mean 'filters'?"),
        ("qqqqqq=3", "n.cfg:10: [convolutional] 'qqqqqq' is an unknown key and is ignored"),
        (
            "filters=9",
            "n.cfg:10: [convolutional] 'filters' is a duplicate key; the value of line 6 is used, as in Darknet",
        ),
        ("stride=", "n.cfg:10: [convolutional] 'stride' has no value and is ignored; write key=value"),
        ("stride", "n.cfg:10: [convolutional] 'stride' has no value and is ignored; write key=value"),
        ("stride=1.7", "n.cfg:10: [convolutional] stride='1.7' is truncated to 1"),
        ("batch_normalize=2", "n.cfg:10: [convolutional] batch_normalize='2' is read as 1"),
    ],
)
def test_doubtful_line_gives_a_warning_with_its_line_number(line, warning):
    cfg = parsed(NET + CONV + line + "\n")
    assert cfg.warnings == (warning,)
    assert (cfg.layers[0].filters, cfg.layers[0].stride) == (8, 1)


def test_warnings_are_bounded_and_counted():
    cfg = parsed(NET + "".join(f"key{i}=1\n" for i in range(5000)) + CONV)
    assert len(cfg.warnings) == cfg_file.MAX_MESSAGES + 1
    assert cfg.warnings[-1] == "and 4900 more"


# --- refused texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "n.cfg:1: the file has no sections; expected [net]"),
        ("# only\n", "n.cfg:1: the file has no sections; expected [net]"),
        ("width=3\n" + NET + CONV, "n.cfg:1: 'width=3' comes before the first section"),
        (CONV, "n.cfg:1: [convolutional] is the first section; expected [net]"),
        (NET, "n.cfg:1: [net] is the only section"),
        ("[net]\nheight=3\nchannels=3\n" + CONV, "n.cfg:1: [net] has no width"),
        (NET + CONV + NET, "n.cfg:10: [net] is a duplicate section"),
        (NET + "[convolutonal]\n", "[convolutonal] is an unknown section; did you mean 'convolutional'?"),
        (NET + "[Yolo]\n", "n.cfg:5: [Yolo] is an unknown section; did you mean 'yolo'?"),
        (NET + "[conv\n", "n.cfg:5: '[conv' is not a section header"),
        (NET + "[]\n", "n.cfg:5: '[]' is not a section header"),
        (NET + CONV + "fil ters=3\n", "n.cfg:10: [convolutional] 'fil ters' is not a valid key"),
        (NET + CONV + "=3\n", "n.cfg:10: [convolutional] '' is not a valid key"),
        (NET + CONV + "stride=\u0663\n", "n.cfg:10: 'stride=\u0663' has a character outside printable ASCII"),
        (NET + CONV + "stride=1\0\n", "n.cfg:10: 'stride=1\\x00' has a character outside printable ASCII"),
        (NET + "[route]\n", "n.cfg:5: [route] has no layers"),
        (NET + CONV + "[shortcut]\n", "n.cfg:10: [shortcut] has no from"),
        (NET + "[yolo]\n", "n.cfg:5: [yolo] has no anchors"),
    ],
)
def test_broken_structure_is_refused_with_its_line_number(text, expected):
    assert any(expected in line for line in mistakes(text)), mistakes(text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("stride=two", "stride='two' is not an integer"),
        ("stride=1e3", "stride='1e3' is not an integer: Darknet reads no exponents here"),
        ("stride=0x10", "stride='0x10' is not an integer"),
        ("stride=180abc", "stride='180abc' is not an integer"),
        ("stride=3 2", "stride='3 2' contains white space inside a number"),
        ("stride=0", "stride='0' is out of range: expected at least 1"),
        ("stride=99999999999", "stride='99999999999' is out of range: expected at most 2147483647"),
        ("stride=" + "9" * 5000, "is not an integer"),
        ("antialiasing=3", "antialiasing='3' is out of range: expected at most 2"),
        ("learning_rate=nan", "learning_rate='nan' is not a number"),
        ("learning_rate=1e999", "learning_rate='1e999' is out of range"),
        ("learning_rate=1_0", "learning_rate='1_0' is not a number"),
        ("share_index=-1", "share_index=-1 refers to an earlier layer, but this is the first one"),
        ("stride=1,2", "stride='1,2' is not an integer"),
        ("xnor=1", "xnor='1' cannot be honoured: binary networks are not supported"),
        ("flipped=1", "flipped='1' cannot be honoured"),
    ],
)
def test_value_that_cannot_be_read_or_honoured_is_refused(line, expected):
    (found,) = mistakes(NET + CONV + line + "\n")
    assert found.startswith("n.cfg:10: [convolutional] ")
    assert expected in found


@pytest.mark.parametrize("word", ["silu", "Mish", "ReLU", "revleaky"])
def test_unknown_activation_is_refused(word):
    (found,) = mistakes(NET + CONV.replace("leaky", word))
    assert found.startswith(f"n.cfg:9: [convolutional] activation='{word}' is unknown")


@pytest.mark.parametrize(("word", "name"), [("silu", "swish"), ("SiLU", "swish"), ("sigmoid", "logistic")])
def test_activation_name_of_another_framework_is_refused_with_darknets_name(word, name):
    (found,) = mistakes(NET + CONV.replace("leaky", word))
    assert found == f"n.cfg:9: [convolutional] activation='{word}' is unknown; Darknet calls it '{name}'"


@pytest.mark.parametrize(("side", "line"), [("width", 2), ("height", 3)])
def test_input_with_a_side_longer_than_any_image_is_refused(side, line):
    (found,) = mistakes(NET.replace(f"{side}=32", f"{side}=1000000") + CONV)
    assert found == f"n.cfg:{line}: [net] {side}='1000000' is out of range: expected at most 65535"


@pytest.mark.parametrize(
    ("change", "line", "expected"),
    [
        (("num=2", "num=3"), 8, "anchors: expected num pairs, got num=3 and 4 numbers"),
        (("1,2,3,4", "1,2,3,4,5"), 8, "has 5 numbers; expected an even count"),
        (("1,2,3,4", "1,2,3 4"), 8, "contains white space inside a number"),
        (("1,2,3,4", "1,2,,4"), 8, "has an empty element"),
        (("1,2,3,4", "1,2,3,4,"), 8, "has an empty element"),
        (("1,2,3,4", "1,2,3,0"), 8, "is out of range: expected at least 1e-06"),
        (("num=2", "num=2000000000"), 6, "is out of range: expected at most 1000"),
        (("num=2", "num=2\nmask=1,2"), 7, "mask: expected indices below num=2, got 2"),
        (("num=2", "num=2\nmask=0,-1"), 7, "is out of range: expected at least 0"),
        (
            ("num=2", "num=2\ncounters_per_class=1,2"),
            7,
            "counters_per_class: expected one number per class, got 2 for classes=1",
        ),
        (("num=2", "num=2\niou_loss=siou"), 7, "iou_loss='siou' is unknown; did you mean"),
        (("num=2", "num=2\nnms_kind=greedy"), 7, "nms_kind='greedy' is unknown; did you mean 'greedynms'?"),
        (("num=2", "num=2\nmap=coco9k.map"), 7, "map='coco9k.map' cannot be honoured: class maps"),
    ],
)
def test_head_with_inconsistent_keys_is_refused(change, line, expected):
    (found,) = mistakes(NET + YOLO.replace(*change))
    assert found.startswith(f"n.cfg:{line}: [yolo] ")
    assert expected in found


def test_anchors_with_a_missing_comma_are_refused():
    """Darknet reads 61,45    61,45 as 61, 4561, 45 and shifts every later pair."""
    text = NET + YOLO.replace("num=2", "num=4").replace("1,2,3,4", "24,51, 61,45    61,45, 48,102")
    assert "anchors='24,51, 61,45    61,45, 48,102' contains white space inside a number" in mistakes(text)[0]


@pytest.mark.parametrize("reference", ["-999", "1", "2", "5", "-2"])
@pytest.mark.parametrize(("section", "key"), [("route", "layers"), ("shortcut", "from"), ("sam", "from")])
def test_reference_to_a_layer_that_is_not_earlier_is_refused(section, key, reference):
    (found,) = mistakes(NET + CONV + f"[{section}]\n{key}={reference}\n")
    assert found.startswith(f"n.cfg:11: [{section}] {key}={reference} is layer ")
    assert found.endswith("layer 1 can refer to 0..0 only")


def test_list_with_too_many_elements_is_refused():
    (found,) = mistakes(NET + CONV + f"[route]\nlayers={','.join('0' * 10_001)}\n")
    assert found.endswith("has more than 10000 elements")


@pytest.mark.parametrize(
    "section", ["crnn", "rnn", "lstm", "detection", "local", "softmax", "lrn", "batchnorm", "implicit"]
)
def test_unsupported_section_is_refused_with_the_reason(section):
    (found,) = mistakes(NET + CONV + f"[{section}]\nanything=1\n")
    assert found.startswith(f"n.cfg:10: [{section}] cannot be honoured: ")


@pytest.mark.parametrize("key", ["track=1", "time_steps=20", "adversarial_lr=1", "attention=1"])
def test_unsupported_recipe_is_refused(key):
    name, value = key.split("=")
    (found,) = mistakes(NET + key + "\n" + CONV)
    assert found.startswith(f"n.cfg:5: [net] {name}='{value}' cannot be honoured: ")


@pytest.mark.parametrize("lists", ["steps=1,2\nscales=.1", "steps=1,2", "scales=.1", "steps=1\nscales=.1,.2"])
def test_steps_without_one_scale_each_are_refused(lists):
    (found,) = mistakes(NET + "policy=steps\n" + lists + "\n" + CONV)
    assert "[net] policy=steps: expected one scale per step, got" in found


def test_all_mistakes_are_reported_in_the_order_of_the_lines():
    text = NET + "track=1\n" + CONV + "stride=x\nxnor=1\n[crnn]\n[route]\nlayers=-9\n[foo]\n"
    assert [line.split(":")[1] for line in mistakes(text)] == ["5", "11", "12", "13", "15", "16"]


def test_mistakes_are_bounded_and_counted():
    found = mistakes(NET + CONV + "[foo]\n" * 1500)
    assert len(found) == cfg_file.MAX_MESSAGES + 1
    assert found[-1] == "and 1400 more"


def test_too_many_layers_are_refused():
    with pytest.raises(DarknetError, match=r"n\.cfg:2005: more than 2000 layers"):
        parsed(NET + "[avgpool]\n" * 2001)
    assert len(parsed(NET + "[avgpool]\n" * 2000).layers) == 2000


def test_file_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "n.cfg"
    path.write_text(NET + CONV + "#" * cfg_file.MAX_FILE_BYTES)
    with pytest.raises(DarknetError, match="is longer than 1048576 characters"):
        read_cfg(path)


# --- files -----------------------------------------------------------------------------------------------------------


def test_latin_1_file_is_read_if_only_its_comments_are_not_ascii(tmp_path):
    path = tmp_path / "n.cfg"
    path.write_bytes(NET.encode() + "# größe\n".encode("latin-1") + CONV.encode())
    assert read_cfg(path) == parsed(NET + CONV)
    assert read_cfg(path).path == str(path)
    path.write_bytes(NET.encode() + CONV.encode() + "größe=1\n".encode("latin-1"))
    with pytest.raises(DarknetError, match=r"n\.cfg:10: .* outside printable ASCII"):
        read_cfg(path)


def test_error_for_a_missing_file_names_the_nearest_shipped_one():
    with pytest.raises(DarknetError, match=r"'yolov4-csx': no such \.cfg; did you mean 'yolov4-csp'"):
        read_cfg("yolov4-csx")


def test_folders_pipes_and_impossible_names_are_refused(tmp_path):
    with pytest.raises(DarknetError, match=r"is not a regular file; expected a \.cfg file"):
        read_cfg(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DarknetError, match=r"is not a regular file; expected a \.cfg file"):
            read_cfg(tmp_path / "pipe")
    for name in ("", "\0", "x" * 5000, "../yolov4", "/nowhere/yolov4.cfg"):
        with pytest.raises(DarknetError):
            read_cfg(name)


def test_existing_path_has_priority_over_a_shipped_name(tmp_path, monkeypatch):
    shipped = find_cfg("yolov4-tiny")
    assert shipped == find_cfg("yolov4-tiny.cfg") == find_cfg("darknet/yolov4-tiny.cfg")
    monkeypatch.chdir(tmp_path)
    assert find_cfg("cfg/darknet/yolov4-tiny.cfg") == shipped
    (tmp_path / "yolov4-tiny").write_text(NET + CONV)
    assert read_cfg("yolov4-tiny") == parsed(NET + CONV)
