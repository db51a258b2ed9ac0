"""The processor and tokenizer beside a checkpoint of transformers: missing ones are left out, broken ones are named."""

import json
import warnings
from pathlib import Path

from legrad.checks import first_line
from legrad.errors import InputError, LeGradError, warn
from legrad.models import transforms
from legrad.models.adapter import Adapter
from legrad.models.files import damage
from legrad.models.hf import library

_PROCESSORS = ("AutoImageProcessor", "AutoVideoProcessor", "AutoFeatureExtractor")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "special_tokens_map.json", "added_tokens.json"),
)
# packages that a tokenizer may want; without them the model is loaded without it
_PACKAGES = ("sentencepiece", "tiktoken", "protobuf")


def with_companions(adapter: Adapter, source: str, name: str) -> Adapter:
    """The adapter with the processor, and for a model with a text tower the tokenizer, of its checkpoint.

    Args:
        adapter: of the loaded model.
        source: folder or repository.
        name: as the user gave it.

    Raises:
        InputError: a file of theirs is there, and cannot be used.

    Warns:
        UserWarning: theirs needs another package, or code of the repository, which is never run.
    """
    errors: list[Exception] = []
    for kind in _PROCESSORS:
        if adapter.transform is None:
            try:
                adapter = _with_processor(adapter, source, kind)
            except LeGradError:
                raise
            except Exception as error:  # broken files come out of a processor in every shape
                errors.append(error)
    if adapter.transform is None and errors:
        _tell(errors[0], source, name, _PROCESSOR_FILES, "images need transform= in legrad.wrap")
    if adapter.encode_text is not None:
        try:
            adapter = _with_tokenizer(adapter, source)
        except LeGradError:
            raise
        except Exception as error:  # as above
            _tell(error, source, name, _TOKENIZER_FILES, "texts need tokenizer= in legrad.wrap")
    return adapter


def _with_processor(adapter: Adapter, source: str, kind: str) -> Adapter:
    import transformers

    with warnings.catch_warnings():
        # AST's own extractor; the lowest of its 128 filters are narrower than a frequency bin
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        processor = getattr(transformers, kind).from_pretrained(source, trust_remote_code=False)
        with_tools, _, _ = library.tools(adapter, processor, None)
    if with_tools.transform is not None and with_tools.anatomy.axes == ("rows", "cols"):
        transforms.try_out(with_tools.transform)
    return with_tools


def _with_tokenizer(adapter: Adapter, source: str) -> Adapter:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        return adapter  # made out of nothing: there are no files of one
    with_tools, _, _ = library.tools(adapter, None, tokenizer)
    if with_tools.tokenize is not None:
        with_tools.tokenize(["a"])
    return with_tools


def _tell(error: Exception, source: str, name: str, names: tuple[str, ...], hint: str) -> None:
    """Name the broken file behind an error; nothing if there is no file, a warning if it only needs more."""
    paths = [path for path in (_path(source, file) for file in names) if path is not None]
    if not paths:
        return
    damages = [fault for fault in map(damage, paths) if fault]
    if not damages and (isinstance(error, ImportError) or any(package in str(error) for package in _PACKAGES)):
        warn(f"{name!r} is loaded without {paths[0].name}: {first_line(error)}; {hint}")
        return
    if not damages and any(map(_wants_code, paths)):
        why = "for it needs code of the repository, which is never run"
        message = f"{name!r} is loaded without {paths[0].name}, {why}; {hint}"
        warn(message)
        return
    fault = damages[0] if damages else f"{', '.join(path.name for path in paths)}: {first_line(error)}"
    raise InputError(
        f"{name!r} has a file that cannot be used, {fault}; repair it, or remove it: then {hint}"
    ) from error


def _path(source: str, file: str) -> Path | None:
    """Where a file of a folder, or of a repository in the cache, lies; None if there is none."""
    if Path(source).is_dir():
        path = Path(source) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, file)
    return Path(cached) if isinstance(cached, str) else None


def _wants_code(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "auto_map" in content
