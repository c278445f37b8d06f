"""Labels from the columns of Parquet files."""

from __future__ import annotations

import json
from decimal import Decimal

import pyarrow as pa
import pytest

from raygan.data.columns import choose, class_names, row_labels
from raygan.errors import ConfigurationError


def found(values, names=None):
    labels, why = row_labels(pa.chunked_array([values]), names, "label", "t.parquet")
    return labels.to_pylist(), dict(why)


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (pa.array([0, 1, -1, None]), ["Cats", "Dog"], ["cat", "dog", None, None]),
        (pa.array([0.0, 1.0, float("nan"), None]), ["cat", "dog"], ["cat", "dog", None, None]),
        (pa.array([0, 1, -1]), None, ["0", "1", None]),
        (pa.array([3, 7], pa.uint8()), None, ["3", "7"]),
        (pa.array([1.0], pa.float16()), None, ["1"]),
        (pa.array([10**30, 10**30 + 1], pa.decimal128(38)), None, [str(10**30), str(10**30 + 1)]),
        (pa.array([Decimal("1.00"), None], pa.decimal32(5, 2)), None, ["1", None]),
        (pa.array(["Cats", "", "nan", None]), None, ["cat", None, None, None]),
        (pa.array(["NA", "N/A", "n/a", "NULL", "None", "<NA>", " NaN "]), None, [None] * 7),
        (pa.array(["none", "na", "No"]), None, ["none", "na", "no"]),
        (pa.array(["0", "1", "-1"]), None, ["0", "1", None]),
        (pa.array(["cat", "dog", "cat"]).dictionary_encode(), None, ["cat", "dog", "cat"]),
        (pa.array([0, 1]).dictionary_encode(), ["cat", "dog"], ["cat", "dog"]),
        (pa.array([["cat"], [], ["cat", "dog"], None]), None, ["cat", None, None, None]),
        (pa.array([[1], [0, 1]]), ["cat", "dog"], ["dog", None]),
        (pa.array([True, False]), None, ["true", "false"]),
        (pa.array([b"cat", b"caf\xe9"]), None, ["cat", "caf\\xe9"]),
        (pa.array(["cat"], pa.large_string()), None, ["cat"]),
        (pa.array(["cat"], pa.string_view()), None, ["cat"]),
        (pa.array([None, None]), None, [None, None]),
        (pa.array([], pa.int64()), None, []),
    ],
)
def test_values_of_all_types_become_labels(values, names, labels):
    assert found(values, names)[0] == labels


def test_rows_without_a_label_are_counted():
    assert found(pa.array([["cat"], [], ["cat", "dog"]]))[1] == {"several labels": 1, "no label": 1}


@pytest.mark.parametrize(
    ("values", "names", "says"),
    [
        (pa.array([0, 1, 2]), ["cat", "dog"], "t.parquet, row 2: column label has 2, .* only 2 classes"),
        (pa.array([0, -2]), ["cat", "dog"], "row 1"),
        (pa.array([-1, 1]), None, "row 0: .* below zero"),
        (pa.array(["1", "-1"]), None, "row 1: .* below zero"),
        (pa.array(["0", "-2"]), None, "row 1: .* below zero"),
        (pa.array([1.0, 0.5]), None, "row 1: .* fraction"),
    ],
)
def test_values_that_are_no_labels_are_refused_with_file_and_row(values, names, says):
    with pytest.raises(ConfigurationError, match=says):
        found(values, names)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("fields", "image", "label"),
    [
        ({"image": IMAGE, "label": pa.int64()}, "image", "label"),
        ({"picture": pa.large_binary(), "Class": pa.string()}, "picture", "Class"),
        ({"mask": pa.binary(), "image": pa.binary(), "species": pa.string(), "id": pa.string()}, "image", "species"),
        ({"image": IMAGE, "kind": pa.string()}, "image", "kind"),
        ({"image": IMAGE, "kind": pa.dictionary(pa.int8(), pa.string())}, "image", "kind"),
        ({"image": IMAGE, "caption": pa.string()}, "image", None),
        ({"image": IMAGE, "a": pa.string(), "b": pa.string()}, "image", None),
        ({"image": IMAGE, "label": pa.timestamp("s")}, "image", None),
        ({"label": pa.string()}, None, "label"),
    ],
)
def test_columns_are_chosen_by_type_and_name(fields, image, label):
    chosen = choose(pa.schema(fields))
    assert (chosen.image, chosen.label) == (image, label)


def test_columns_that_can_not_be_what_the_flag_says_are_refused():
    schema = pa.schema({"image": IMAGE, "when": pa.timestamp("s"), "label": pa.string()})
    for options, says in (
        ({"label": "kind"}, "--label-column: there is no column"),
        ({"image": "kind"}, "--image-column: there is no column"),
        ({"label": "when"}, "--label-column: column 'when' holds timestamp"),
        ({"image": "when"}, "--image-column: column 'when' holds timestamp"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            choose(schema, **options)


@pytest.mark.parametrize(
    ("feature", "names"),
    [
        ({"names": ["cat", "dog"], "_type": "ClassLabel"}, ["cat", "dog"]),
        ({"names": {"0": "cat", "1": "dog"}}, ["cat", "dog"]),
        ({"feature": {"names": ["cat"]}, "_type": "Sequence"}, ["cat"]),
        ({"dtype": "string"}, None),
        ({"names": None}, None),
        ({"names": 2}, None),
        (None, None),
    ],
)
def test_names_of_numbers_are_read_from_hugging_faces_metadata(feature, names):
    metadata = {"huggingface": json.dumps({"info": {"features": {"kind": feature}}})}
    schema = pa.schema({"image": IMAGE, "kind": pa.int64(), "n": pa.int64()}, metadata)
    assert class_names(schema, "kind") == names
    assert choose(schema).label == ("kind" if names else None)
