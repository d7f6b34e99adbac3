"""Writing .cfg files: the text reads back equal, and every fork of Darknet and OpenCV accepts it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from detector.darknet.cfg_file import DarknetCfg, dump_cfg, parse_cfg
from detector.darknet.cfg_keys import keys_of
from detector.darknet.sections import SECTION_TYPES, ConvolutionalSection, NetSection
from detector.errors import DarknetError

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n"
YOLO = "[yolo]\nnum=2\nclasses=1\nanchors=1,2,3,4\n"


def parsed(text: str) -> DarknetCfg:
    return parse_cfg(text, "n.cfg")


EVERYTHING = (
    NET
    + "batch=64\nsubdivisions=8\npolicy=steps\nsteps=10,20\nscales=.1,.5\nlearning_rate=1e-5\nflip=0\nmosaic=1\n"
    + CONV
    + "[convolutional]\nfilters=8\nsize=3\nstride=2\nstride_x=1\npadding=1\ngroups=2\ndilation=1\nantialiasing=1\n"
    + "activation=mish\nbatch_normalize=1\nstopbackward=1\nlearning_rate=.5\n"
    + "[convolutional]\nsize=1\nfilters=8\ncbn=1\n[convolutional]\nsize=1\nshare_index=-1\nfilters=8\n"
    + "[max]\nstride=2\n[maxpool]\nsize=5\nstride=1\npadding=3\n[local_avgpool]\nsize=4\nstride=4\n[avgpool]\n"
    + "[upsample]\nscale=.5\n[route]\nlayers=-1,-2\ngroups=2\ngroup_id=1\n[reorg]\nstride=2\n[reorg3d]\nstride=2\n"
    + "[shortcut]\nfrom=-3,-2\nweights_type=per_channel\nweights_normalization=softmax\nactivation=leaky\n"
    + "[scale_channels]\nfrom=-2\nscale_wh=1\n[sam]\nfrom=-2\nactivation=logistic\n[dropout]\nprobability=.1\n"
    + "[connected]\noutput=10\nactivation=relu\n"
    + YOLO
    + "mask=1\nmax_delta=2.5\ncounters_per_class=7\nembedding_layer=-4\n[Gaussian_yolo]\nnum=1\nanchors=.5,2\n"
    + "yolo_point=left_top\n[region]\nnum=1\nanchors=1.3221,1.73145\nsoftmax=1\n[contrastive]\nyolo_layer=-2\n"
)


def test_written_file_reads_back_equal_without_warnings():
    cfg = parsed(EVERYTHING)
    again = parse_cfg(dump_cfg(cfg), "again")
    assert again == cfg
    assert again.warnings == ()
    assert {type(layer) for layer in cfg.layers} == set(SECTION_TYPES.values())


BOUND = {  # keys whose values must fit others; the test above covers them
    *("layers", "from", "share_index", "embedding_layer", "yolo_layer", "mask", "anchors", "num", "coords", "policy"),
    *("counters_per_class", "width", "height", "channels"),
}


def another_value(key):
    if key.constraints.choices:
        return key.constraints.choices[-1]
    if isinstance(key.default, bool):
        return not key.default
    if isinstance(key.default, tuple):
        return (3, 4)
    if isinstance(key.default, int):
        return -3 if key.constraints.low < 0 else 3 - (key.default != 2)
    return 3 if key.type is int else 0.0625


@pytest.mark.parametrize("section_type", [NetSection, *SECTION_TYPES.values()])
def test_every_key_is_written_and_read_back(section_type):
    keys = keys_of(section_type)
    conv = ConvolutionalSection()
    net = NetSection(width=1, height=1, channels=1)
    needed = {"anchors": {"anchors": ((1.0, 2.0),)}, "dilation": {"size": 3}}
    plain = (
        net
        if section_type is NetSection
        else section_type(**{k: v for n in needed if n in keys for k, v in needed[n].items()})
    )
    for name in set(keys) - BOUND:
        section = dataclasses.replace(plain, **{keys[name].attribute: another_value(keys[name])})
        assert section != plain
        cfg = DarknetCfg(section, (conv,)) if section_type is NetSection else DarknetCfg(net, (conv, section))
        assert parse_cfg(dump_cfg(cfg), "again") == cfg, name


def test_written_text_is_accepted_by_every_reader():
    """No exponents (hank-ai), no short names, no section but [net] first, no blanks, explicit defaults (OpenCV)."""
    text = dump_cfg(parsed(EVERYTHING))
    lines = [line for line in text.split("\n") if line]
    assert lines[0] == "[net]"
    for line in lines:
        if line.startswith("["):
            assert line[1:-1] in {"net", *SECTION_TYPES}
        else:
            key, value = line.split("=")
            assert " " not in line
            assert not any(c in value.lower() for c in "e+") or not value[0].isdigit()
            assert key
    bare = dump_cfg(parsed(NET + "[convolutional]\n[maxpool]\n[upsample]\n" + YOLO))
    assert "[convolutional]\nfilters=1\nsize=1\nstride=1\npad=0\nactivation=logistic\n" in bare
    assert "[maxpool]\nsize=1\nstride=1\n" in bare
    assert "[upsample]\nstride=2\n" in bare
    assert "mask=0,1\nanchors=1,2,3,4\nclasses=1\nnum=2\n" in bare


@pytest.mark.parametrize("value", [1e-7, 0.1, 1 / 3, 5e-324, 123456.75, -2.5e-9, 1e9])
def test_floats_are_written_exactly(value):
    cfg = parsed(NET + CONV)
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, learning_rate=value))
    assert parse_cfg(dump_cfg(cfg), "again").net.learning_rate == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_refused(value):
    cfg = parsed(NET + CONV)
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, learning_rate=value))
    with pytest.raises(DarknetError, match=r"n\.cfg:1: \[net\] learning_rate=.* cannot be written"):
        dump_cfg(cfg)


def test_location_of_a_section_made_by_a_program_has_no_line():
    cfg = DarknetCfg(NetSection(width=1, height=1, channels=1), (ConvolutionalSection(),))
    assert cfg.place(cfg.net) == "the network: [net]"
