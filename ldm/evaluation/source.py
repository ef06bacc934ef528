"""Where do the weights of a feature extractor come from?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer
from transformers.utils.hub import cached_file

from ldm.evaluation.preprocessing import Preprocessing, preprocessing_from

PACKAGED = {"tiny": Path(__file__).parents[1] / "assets" / "tiny" / "clip"}
CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_NEEDED = f"{CONFIG}, model.safetensors and {_PREPROCESSOR} (CLIP: the tokenizer, too)"


@dataclass(frozen=True)
class Source:
    """Where an extractor's files are: a folder or a hub id; offline: in the hub's cache."""

    name: str
    place: str
    revision: str
    offline: bool

    @classmethod
    def find(cls, source: str, revision: str) -> Source:
        """The cache first: an air-gapped start does not wait for retries."""
        folder = PACKAGED.get(source) or Path(source).expanduser()
        if folder.is_dir():
            return cls(source if source in PACKAGED else folder.name, str(folder), revision, True)
        problem = ""
        for offline in (True, False):
            found = cls(source, source, revision, offline)
            try:
                found.path(CONFIG)
            except OSError as error:  # each means that it can't be had this way
                problem = str(error).split("\n")[0][:200]
            else:
                return found
        raise FileNotFoundError(
            f"extractor {source!r} is neither a folder here nor to be had from the hub "
            f"({problem}): put {_NEEDED} into a folder and give its path, or use 'tiny'"
        )

    def path(self, name: str) -> str:
        """The local path of one of its files. Raises OSError."""
        kwargs = {"revision": self.revision, "local_files_only": self.offline}
        return str(cached_file(self.place, name, **kwargs))

    def json(self, name: str) -> Mapping[str, Any]:
        try:
            read = json.loads(Path(self.path(name)).read_text(encoding="utf-8"))
        except OSError as error:
            raise self._incomplete(name) from error
        except ValueError as error:
            raise ValueError(f"{name} of extractor {self.name!r} is no JSON: {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"{name} of extractor {self.name!r} is no JSON object")
        return read

    def preprocessing(self) -> Preprocessing:
        return preprocessing_from(
            self.json(_PREPROCESSOR), where=f"{_PREPROCESSOR} of extractor {self.name!r}"
        )

    def load(self, kind: Any) -> Any:
        """The network in fp32, frozen. Pickled weights are refused."""
        try:
            model, report = kind.from_pretrained(
                self.place,
                revision=self.revision,
                local_files_only=self.offline,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except OSError as error:
            raise self._incomplete("model.safetensors") from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"extractor {self.name!r} lacks {len(missing)} weights (the first: {missing[0]}); "
                "they would be random: put the complete file there"
            )
        return model.eval().requires_grad_(False)

    def load_tokenizer(self) -> CLIPTokenizer:
        try:
            self.path("tokenizer_config.json")
            found: CLIPTokenizer = CLIPTokenizer.from_pretrained(
                self.place, revision=self.revision, local_files_only=self.offline
            )
        except OSError as error:
            raise self._incomplete("the tokenizer") from error
        return found

    def _incomplete(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"extractor {self.name!r} is incomplete: {name} is missing; "
            f"put {_NEEDED} into {self.place}"
        )
