"""Addresses as text: what is inside a folder, what is the query, and which part is a secret."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygan import addresses


@pytest.mark.parametrize("query", ["", "?region=us-east-1&endpoint_override=http://127.0.0.1:5000"])
def test_what_is_inside_a_folder_has_the_folders_query(query):
    folder = f"s3://bucket/some/folder{query}"
    assert addresses.join(folder, "runs", "a.json") == f"s3://bucket/some/folder/runs/a.json{query}"
    assert (
        addresses.parent(folder) == addresses.parent(f"s3://bucket/some/folder/{query}") == f"s3://bucket/some{query}"
    )
    assert addresses.name(folder) == addresses.name(f"s3://bucket/some/folder/{query}") == "folder"


def test_local_paths_have_no_query():
    assert addresses.join("/some/a?b=c", "d") == "/some/a?b=c/d"
    assert addresses.parent("/some/a?b=c") == "/some"
    assert addresses.name("/some/a?b=c") == "a?b=c"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        *[("", "empty"), (" ", "empty"), ("a\0b", "null"), ("s3:/bucket/x", "begin with s3://"), ("gs:b", "gs://")],
        *[("s3://", "a bucket"), ("gs:///x", "a bucket"), ("file://photos", "absolute"), ("file:/x", "file://")],
    ],
)
def test_what_can_only_be_a_mistake_is_refused(address, says):
    with pytest.raises(ValueError, match=says):
        addresses.well_formed(address)


def test_a_home_that_does_not_exist_is_refused(monkeypatch):
    """A container's user may have neither HOME nor an entry in /etc/passwd; ``~`` would become a folder's name."""
    monkeypatch.setattr(addresses.os.path, "expanduser", lambda path: path)
    for address in ("~", "~/raygan"):
        with pytest.raises(ValueError, match="set HOME, or give an absolute path"):
            addresses.well_formed(address)
    assert addresses.well_formed("~old/x") == "~old/x"


@pytest.mark.parametrize(
    "address",
    [
        *["./s3:x", "a:b", "photos", ".", "/", "~/x", "C:\\x", "file:///x", "file://localhost/x", "s3://b"],
        *["s3://b?region=x", "gs://anonymous@b/x", "abfs://c@a.dfs.core.windows.net/x", "hdfs://name:8020/x"],
    ],
)
def test_addresses_that_can_be_meant_stay(address):
    assert addresses.well_formed(address) == address


def test_a_glob_is_not_a_query():
    assert addresses.join("s3://bucket/a?.jpg", "b") == "s3://bucket/a?.jpg/b"


@pytest.mark.parametrize(
    ("address", "shown", "secret"),
    [
        ("s3://bucket/a?region=x", "s3://bucket/a?region=x", None),
        ("s3://key:hush@bucket/a", "s3://bucket/a", "hush"),
        ("s3://bucket/a?region=x&secret_key=hush&b=c", "s3://bucket/a?region=x&secret_key=...&b=c", "hush"),
        ("abfss://box@account.host/a", "abfss://box@account.host/a", None),
        ("https://me@host", "https://host", None),
        ("s3://key:a/b+c@bucket/a", "s3://bucket/a", "a/b+c"),
        ("mysql://me:hu#s?h@host/db", "mysql://host/db", "hu#s?h"),
        ("mysql://me:p@ss@host:3306/a@b", "mysql://host:3306/a@b", "p@ss"),
        ("mysql://me:1234@host/db", "mysql://host/db", "1234"),
        ("hdfs://host:8020/a@b", "hdfs://host:8020/a@b", None),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c", None),
        ("/a@b:c", "/a@b:c", None),
    ],
)
def test_secrets_are_found_and_removed(address, shown, secret):
    assert addresses.public(address) == shown
    assert addresses.password(address) == secret


@pytest.mark.parametrize("path", ["/st/a?b=1/mlflow.db", "/st/feature%2Fcats/mlflow.db", "/h#x y é/mlflow.db"])
def test_a_sqlite_file_is_found_again_in_its_address(path):
    assert addresses.sqlite_file(addresses.sqlite_uri(path)) == path
    assert addresses.sqlite_file(f"{addresses.sqlite_uri(path)}?timeout=9") == path
    assert addresses.sqlite_file("postgresql://host/db") is None


@given(st.text(min_size=1), st.integers(20, 100))
def test_a_slug_is_a_short_name_for_a_file(text, most):
    name = addresses.slug(text, most)
    assert re.fullmatch(r"(?!\.)[\w.-]+", name)
    assert len(name.encode()) <= most
    assert addresses.slug(name, most) == name
    plain = addresses.slug(text, most, ascii_only=True)
    assert plain.isascii()
    assert addresses.slug(plain, most, ascii_only=True) == plain


def test_ordinary_labels_are_their_own_slugs():
    for label in ("cat", "maine_coon", "кот", "cat.1"):
        assert addresses.slug(label) == label
