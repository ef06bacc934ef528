"""What is a file that was given as weights and is none?"""

from __future__ import annotations

from pathlib import Path

EXPECTED = (
    "expected weights: a .safetensors file, the index of its shards (*.index.json) or a PyTorch "
    "file (.ckpt, .pt, .pth, .bin)"
)
START = 512  # bytes that tell a format; a tar's mark lies at 257
LFS = "a Git LFS pointer: the weights themselves are not here; run `git lfs pull` in its folder"
MARKS = (
    (b"version https://git-lfs", LFS),
    (b"GGUF", "a GGUF file (quantised weights of llama.cpp and its kin)"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a picture or a sound (RIFF)"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras weights, perhaps)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"PK\x05\x06", "an empty zip archive"),
)
PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")


class UnreadableWeights(ValueError):
    """A file is there, but not as weights that can be read; the text says what it is."""


def unreadable(path: Path, what: str) -> UnreadableWeights:
    """The error for a file that is `what`, with what was expected."""
    return UnreadableWeights(f"{path} is {what}; {EXPECTED}")


def start_of(path: Path) -> bytes:
    """The first bytes. Raises FileNotFoundError, UnreadableWeights for what is not a file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {EXPECTED}")
    if not path.is_file():
        raise unreadable(path, "a folder" if path.is_dir() else "neither a file nor a folder")
    with path.open("rb") as file:
        return file.read(START)


def words_of(start: bytes) -> str:
    """What a file is that begins with `start` (the whole file or START bytes of it)."""
    if not start:
        return "empty (0 bytes): the download did not begin, or the disk was full"
    for mark, words in MARKS:
        if start.startswith(mark):
            return words
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(PAGES):
        return "a web page (HTML): a download or login page was saved in place of the file"
    if text.startswith(b"<"):
        return "an XML text: a server's error message, perhaps"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if start[:1] == b"\x08" and start[2:3] == b"\x12":  # ir_version, then producer_name
        return "an ONNX model"
    if not start.strip(b"\0"):
        return "full of zeros where a format is named: an unfinished download, perhaps"
    if _is_text(start):
        return "a text"
    return "of no known format"


def shown(names: list[str], most: int = 3) -> str:
    """The first names, safe to print whatever they contain."""
    listed = ", ".join(ascii(name)[1:-1][:120] for name in names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_text(start: bytes) -> bool:
    """A character may be cut at the end, hence the ignored errors there."""
    decoded = start.decode("utf-8", "ignore")
    whole = len(decoded.encode()) >= len(start) - 3
    return whole and all(c.isprintable() or c in "\t\r\n" for c in decoded)
