"""Typed sections: Darknet's defaults and the values that it derives from other keys."""

from __future__ import annotations

import dataclasses
import math

import pytest

from detector.darknet import sections
from detector.darknet.cfg_keys import keys_of
from detector.darknet.sections import (
    ConvolutionalSection,
    GaussianYoloSection,
    LocalAvgpoolSection,
    MaxpoolSection,
    NetSection,
    RegionSection,
    YoloSection,
)

ALL_TYPES = [NetSection, *sections.SECTION_TYPES.values()]


def test_convolution_without_keys_has_darknets_defaults():
    section = ConvolutionalSection()
    assert (section.filters, section.size, section.stride, section.kernel_padding) == (1, 1, 1, 0)
    assert (section.activation, section.batch_normalize, section.groups) == ("logistic", False, 1)


@pytest.mark.parametrize(
    ("keys", "padding"),
    [
        ({"size": 3, "pad": True}, 1),
        ({"size": 2, "pad": True}, 1),
        ({"size": 3, "padding": 2}, 2),
        ({"size": 3, "pad": True, "padding": 5}, 1),  # pad has priority
        ({"size": 3, "pad": True, "dilation": 3}, 3),
        ({"size": 1, "pad": True, "dilation": 3}, 0),  # a single weight has no dilation
    ],
)
def test_pad_has_priority_over_padding_and_dilation_scales_it(keys, padding):
    assert ConvolutionalSection(**keys).kernel_padding == padding


def test_stride_of_one_axis_overrides_the_common_one():
    section = ConvolutionalSection(stride=2, stride_x=1)
    assert (section.stride_y, section.stride_x) == (2, 1)
    pool = MaxpoolSection(stride=2, stride_y=3)
    assert (pool.stride_y, pool.stride_x) == (3, 2)


@pytest.mark.parametrize("section_type", [MaxpoolSection, LocalAvgpoolSection])
def test_pool_size_defaults_to_stride_and_padding_to_size_less_one(section_type):
    section = section_type(stride=3)
    assert (section.size, section.padding) == (3, 2)
    assert section_type(stride=2, size=5, padding=0).padding == 0


def test_cross_iteration_normalisation_implies_batch_normalisation():
    assert ConvolutionalSection(cbn=True).batch_normalize


@pytest.mark.parametrize("section_type", [YoloSection, GaussianYoloSection])
def test_head_without_mask_has_all_anchors(section_type):
    assert section_type(num=3).mask == (0, 1, 2)


def test_yolo_head_has_darknets_defaults():
    head = YoloSection()
    assert (head.classes, head.num, head.max, head.scale_x_y, head.new_coords) == (20, 1, 200, 1.0, False)
    assert (head.ignore_thresh, head.truth_thresh, head.iou_thresh, head.iou_thresh_kind) == (0.5, 1.0, 1.0, "iou")
    assert (head.iou_loss, head.iou_normalizer, head.obj_normalizer, head.cls_normalizer) == ("mse", 0.75, 1.0, 1.0)
    assert (head.nms_kind, head.beta_nms, head.jitter, head.resize, head.random) == ("default", 0.6, 0.2, 1.0, 0.0)
    assert head.max_delta == math.inf
    region = RegionSection()
    assert (region.classes, region.coords, region.thresh, region.softmax) == (20, 4, 0.5, False)


def test_recipe_has_darknets_defaults():
    net = NetSection()
    assert (net.batch, net.subdivisions, net.momentum, net.decay) == (1, 1, 0.9, 0.0001)
    assert (net.learning_rate, net.learning_rate_min, net.burn_in, net.power) == (0.001, 0.00001, 0, 4.0)
    assert (net.policy, net.sgdr_mult, net.resize_step, net.flip) == ("constant", 2, 32, True)
    assert (net.adam, net.B1, net.B2, net.eps) == (False, 0.9, 0.999, 1e-6)
    assert (net.saturation, net.exposure, net.hue, net.letter_box, net.mosaic) == (1.0, 1.0, 0.0, False, False)


def test_sections_on_different_lines_are_equal():
    assert YoloSection(line=3) == YoloSection(line=4)
    assert "line" not in keys_of(YoloSection)


@pytest.mark.parametrize("section_type", ALL_TYPES)
def test_every_field_is_a_key_that_is_neither_refused_nor_ignored(section_type):
    keys = keys_of(section_type)
    fields = {f.name.rstrip("_") for f in dataclasses.fields(section_type)} - {"line"}
    assert set(keys) == fields
    assert not fields & (set(section_type.refused) | section_type.ignored)


@pytest.mark.parametrize("section_type", ALL_TYPES)
def test_every_default_lies_within_its_own_constraints(section_type):
    for key in keys_of(section_type).values():
        if isinstance(key.default, str):
            assert key.default in key.constraints.choices
        elif isinstance(key.default, int | float) and not key.constraints.required and key.default != math.inf:
            derived = key.default == 0 and key.attribute in ("stride_x", "stride_y", "size")
            assert derived or key.constraints.low <= key.default <= key.constraints.high


def test_no_section_is_both_read_and_refused():
    assert not set(sections.SECTION_TYPES) & set(sections.REFUSED_SECTIONS)
    assert set(sections.SHORT_NAMES.values()) <= {"net", *sections.SECTION_TYPES, *sections.REFUSED_SECTIONS}
