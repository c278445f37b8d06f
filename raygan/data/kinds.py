"""Kinds of files by name alone: photos, archives, and files that are left aside unread."""

from __future__ import annotations

from collections.abc import Callable

from raygan.errors import first_line

#: Endings of image files. Files with other endings are photos only if their first bytes say so.
IMAGE_ENDINGS = frozenset(
    """
    .jpg .jpeg .jpe .jfif .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif .heic .heif .hif
    .tga .ico
    """.split()  # noqa: SIM905 - a list of quoted words would fill a screen
)

#: Kinds of files that are counted, never read: their endings, and what helps.
_FOREIGN = {
    "JPEG XL photo": (".jxl", "convert to JPEG or PNG"),
    "camera RAW file": (
        ".3fr .arw .cr2 .cr3 .dng .erf .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srf .srw .x3f",
        "convert to JPEG or PNG",
    ),
    "drawing or document": (".psd .psb .xcf .kra .svg .eps .ai .pdf", "convert to JPEG or PNG"),
    "video": (".mp4 .mov .avi .mkv .webm .m4v", "extract frames"),
    "file of arrays or records": (
        ".npy .npz .h5 .hdf5 .mat .mdb .tfrecord .tfrecords .rec .arrow .feather .pkl .pickle .pt .pth",
        "write as image files or Parquet",
    ),
    "spreadsheet": (".xls .xlsx .ods .numbers", "save as labels.csv"),
    "packed file": (".7z .rar .gz .bz2 .xz .zst .lz4 .iso .dmg", "unpack first"),
}
_KINDS = {ending: kind for kind, (endings, _) in _FOREIGN.items() for ending in endings.split()}

#: What helps with files left aside, by kind.
ADVICE = {kind: advice for kind, (_, advice) in _FOREIGN.items()} | {
    "archive": "unpack, or give to --input itself",
    "Parquet without photos": "a column must have encoded photos, or paths of photos that exist",
}

#: Folders and files that systems and tools leave among photos, in lower case. Some hold thumbnails, deleted photos or
#: pictures of programs.
_SYSTEM = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
        *("venv", "site-packages", "node_modules", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini", "zbthumbnail.info"),
    }
)

#: Endings of tables, which may have labels of photos.
TABLES = frozenset({".csv", ".tsv", ".jsonl"})

#: Endings of archives that can be an input.
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

#: First bytes of packed files.
_PACKED = {
    b"PK\x03\x04": "a .zip archive",
    b"Rar!": "a .rar archive",
    b"7z\xbc\xaf": "a .7z archive",
    b"\x1f\x8b": "a .gz file",
    b"\x28\xb5\x2f\xfd": "a .zst file",
}


def split_path(path: str) -> list[str]:
    """A path's folders and its file name. Archives made on Windows may have backslashes between them."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def ending(path: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty without one."""
    name = split_path(path)[-1:] or [""]
    stem, dot, last = name[0].rpartition(".")
    return f".{last.lower()}" if stem and dot else ""


def without_ending(path: str) -> str:
    """A path without the ending of the file's name."""
    return path[: len(path) - len(ending(path))]


def is_image_name(path: str) -> bool:
    """Whether the file's ending is that of an image."""
    return ending(path) in IMAGE_ENDINGS


def is_archive_name(path: str) -> bool:
    """Whether the file's ending is that of an archive that can be an input."""
    return path.lower().endswith(ARCHIVE_ENDINGS)


def left_aside(path: str) -> str | None:
    """Why a file is left aside by its name alone, such as "hidden file"; None if it isn't."""
    parts = split_path(path)
    if ".." in parts or path.startswith(("/", "\\")):
        return "outside the archive"
    if any(part.startswith(".") or part.lower() in _SYSTEM for part in parts):
        return "hidden file"
    if is_archive_name(path):
        return "archive"
    return _KINDS.get(ending(path))


def in_place_of_a_file(start: bytes) -> str | None:
    """Describe what a failed download left in place of a file, and what helps; None for a file.

    start: its first bytes, at least 262.
    """
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: fetch the file with `git lfs pull`"
    packed = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
    if packed or start[257:262] == b"ustar":
        return f"{packed or 'a .tar archive'} that has another ending or isn't whole"
    if start.lstrip()[:1] == b"<":
        return "HTML or XML, as a failed download leaves it"
    return None


def why_unreadable(start: Callable[[], bytes], error: BaseException) -> str:
    """Why a file can't be read: what is in its place, else the error's message. start: reads its first bytes."""
    try:
        instead = in_place_of_a_file(start())
    except OSError:
        instead = None
    return f"it is {instead}" if instead else first_line(error).rstrip(":")
