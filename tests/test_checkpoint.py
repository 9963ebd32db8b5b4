import json
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.checkpoint import (
    CheckpointError,
    Loading,
    check_exists,
    check_tokenizers,
    load_config,
    load_tokenizer,
    own_draft_vocab,
    read_checkpoint,
)
from vllm_pard.errors import first_sentence

PARD: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 512,
    "pard_token": 500,
    "spd_type": "pard",
}
PARD2 = PARD | {
    "spd_type": "pard2",
    "pard2": True,
    "pard2_scale": 0.02,
    "pard2_proj_bias": False,
    "pard2_target_dim": 256,
    "pard2_target_layers": [-1, -8, -16, -24],
}
PARD2_LEGACY = PARD | {"pard2": True, "feat_scale": 0.02, "pard_target_dim": 64}


def test_pard() -> None:
    checkpoint = read_checkpoint("amd/draft", PARD)
    assert checkpoint.path == "amd/draft"
    assert (checkpoint.vocab_size, checkpoint.mask_token_id) == (512, 500)
    assert checkpoint.format == "pard"
    assert checkpoint.num_speculative_tokens is None


@pytest.mark.parametrize("config", [PARD2, PARD2_LEGACY], ids=["spd_type", "legacy"])
def test_pard2(config: dict[str, Any]) -> None:
    assert read_checkpoint("draft", config).format == "pard2"


def test_trained_length() -> None:
    assert read_checkpoint("draft", PARD | {"num_speculative_tokens_trained": 12}).num_speculative_tokens == 12


@pytest.mark.parametrize("value", [0, -3, True, "8", 8.0])
def test_bad_trained_length(value: object) -> None:
    with pytest.raises(CheckpointError, match="num_speculative_tokens_trained"):
        read_checkpoint("draft", PARD | {"num_speculative_tokens_trained": value})


MASK_SOURCES = [
    {"pard_token": 1},
    {"mask_token_id": 2},
    {"dflash_config": {"mask_token_id": 3}},
    {"ptd_token_id": 4},
]


@pytest.mark.parametrize("first", range(len(MASK_SOURCES)))
def test_mask_token_lookup_order(first: int) -> None:
    config = {key: value for key, value in PARD.items() if key != "pard_token"}
    for source in MASK_SOURCES[first:]:
        config |= source
    assert read_checkpoint("draft", config).mask_token_id == first + 1


def test_given_mask_token_beats_the_config() -> None:
    assert read_checkpoint("draft", PARD, mask_token_id=0).mask_token_id == 0


def test_missing_mask_token_says_what_to_do() -> None:
    config = {key: value for key, value in PARD.items() if key != "pard_token"}
    with pytest.raises(CheckpointError, match=r'"pard_token".*"mask_token_id" in the speculative config') as caught:
        read_checkpoint("draft", config)
    assert """generate: --speculative-config '{"mask_token_id": ID}', vllm-pard doctor: --mask-token-id""" in str(
        caught.value
    )


@pytest.mark.parametrize("value", [True, -1, 512, "500", 500.0, [500]])
def test_bad_mask_token(value: Any) -> None:
    with pytest.raises(CheckpointError, match="from 0 to 511; pard_token is"):
        read_checkpoint("draft", PARD | {"pard_token": value})
    with pytest.raises(CheckpointError, match="the given mask_token_id"):
        read_checkpoint("draft", PARD, mask_token_id=value)


@pytest.mark.parametrize("architectures", [None, [], ["Qwen2ForSequenceClassification"], "LlamaForCausalLM"])
def test_not_a_causal_lm(architectures: object) -> None:
    with pytest.raises(CheckpointError, match="causal language model"):
        read_checkpoint("draft", PARD | {"architectures": architectures})


@pytest.mark.parametrize("vocab_size", [None, 0, True, "512"])
def test_bad_vocab_size(vocab_size: object) -> None:
    with pytest.raises(CheckpointError, match="vocab_size"):
        read_checkpoint("draft", PARD | {"vocab_size": vocab_size})


def test_load_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PARD))
    assert load_config(str(tmp_path)) == PARD


def test_load_config_complains_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{bad")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="JSON object"):
        load_config(str(tmp_path))
    with pytest.raises(CheckpointError, match="is a file"):
        load_config(str(tmp_path / "config.json"))
    for missing in (str(tmp_path / "missing"), "./missing", "~/missing", "a/b/c", ""):
        with pytest.raises(CheckpointError, match="there is no model folder"):
            load_config(missing)


def test_load_tokenizer_complains_in_one_sentence(tmp_path: Path) -> None:
    for missing in ("./missing", "a/b/c", ""):
        with pytest.raises(CheckpointError, match=f"there is no model folder '{missing}'; check the path"):
            load_tokenizer(missing)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        load_tokenizer(str(tmp_path / "file"))


def test_a_bucket_is_no_folder() -> None:
    check_exists("s3://bucket/folder/model")
    with pytest.raises(CheckpointError, match="can't read the config of 's3://bucket/folder/model'"):
        load_config("s3://bucket/folder/model")


def test_load_config_of_an_impossible_name() -> None:
    with pytest.raises(CheckpointError, match="can't read the config of 'no such name'") as caught:
        load_config("no such name")
    assert "\n" not in str(caught.value)


def test_load_config_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PretrainedConfig

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nCheck your internet connection")

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", offline)
    with pytest.raises(CheckpointError, match="We couldn't connect") as caught:
        load_config("amd/PARD-Qwen3-0.6B")
    assert "\n" not in str(caught.value)


def save_tokenizer(folder: Path, words: list[str], special: list[str]) -> str:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


WORDS = ["<unk>", "a", "b", "c"]


@pytest.fixture
def target(tmp_path: Path) -> str:
    return save_tokenizer(tmp_path / "target", WORDS, ["<eos>", "<pad>"])


def test_same_tokenizer(tmp_path: Path, target: str) -> None:
    assert check_tokenizers(target, save_tokenizer(tmp_path / "draft", WORDS, ["<eos>", "<pad>"])) is None
    assert check_tokenizers(target, target) is None


def test_sizes_may_differ(tmp_path: Path, target: str) -> None:
    assert check_tokenizers(target, save_tokenizer(tmp_path / "draft", WORDS, ["<eos>"])) is None


def test_draft_without_tokenizer_has_the_targets(tmp_path: Path, target: str) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "config.json").write_text(json.dumps(PARD))
    assert check_tokenizers(target, str(draft)) is None


def test_other_words_are_refused_by_the_first_id(tmp_path: Path, target: str) -> None:
    draft = save_tokenizer(tmp_path / "draft", ["<unk>", "a", "c", "b"], ["<eos>", "<pad>"])
    with pytest.raises(CheckpointError, match="token 2 is 'b' there and 'c' here"):
        check_tokenizers(target, draft)


def test_other_special_tokens_are_a_note(tmp_path: Path, target: str) -> None:
    draft = save_tokenizer(tmp_path / "draft", WORDS, ["<eos>", "<reserved>"])
    assert check_tokenizers(target, draft) == "special tokens differ: token 5 is '<pad>' there and '<reserved>' here"


def test_target_without_tokenizer(tmp_path: Path, target: str) -> None:
    """An engine may load it in a way of its own, and says itself if it can't."""
    note = check_tokenizers(str(tmp_path), target)
    assert note is not None
    assert note.startswith(f"tokenizers are not compared: can't load the tokenizer of {str(tmp_path)!r}: ")


def test_engine_without_tokenizer(tmp_path: Path, target: str) -> None:
    note = check_tokenizers(str(tmp_path), target, target_loading=Loading(skip_tokenizer=True))
    assert note == "tokenizers are not compared: the engine loads none (skip_tokenizer_init)"


REMOTE_CODE = """
from transformers import PreTrainedTokenizer


class RemoteTokenizer(PreTrainedTokenizer):
    vocab_size = 2

    def get_vocab(self):
        return {"a": 0, "b": 1}
"""


def test_tokenizer_of_remote_code(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where the engine would run it, and never asked about."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    auto_map = {"AutoTokenizer": ["tokenization_remote.RemoteTokenizer", None]}
    (remote / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (remote / "tokenization_remote.py").write_text(REMOTE_CODE)
    note = check_tokenizers(str(remote), target)
    assert note is not None
    assert "custom code" in note
    note = check_tokenizers(str(remote), target, target_loading=Loading(trust_remote_code=True))
    assert note is not None
    assert "one is a RemoteTokenizer, the other a " in note, "libraries write tokens in ways of their own"


def test_hub_is_asked_as_the_engine_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PretrainedConfig

    asked = {}

    def remember(*args: object, **kwargs: object) -> tuple[dict[str, Any], None]:
        asked.update(kwargs)
        return PARD, None

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", remember)
    load_config("amd/PARD-Qwen3-0.6B", Loading(revision="abc", token="secret"))
    assert asked == {"revision": "abc", "token": "secret"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("We couldn't connect to 'https://x.co'.\nCheck your internet connection.", "We couldn't connect to 'https://x.co'"),
        ("x is not a valid model identifier\nIf this is private, log in.", "x is not a valid model identifier"),
        ("Wanted one of: \n(1) a file, \n(2) a\nfolder. \nYou need more", "Wanted one of: (1) a file, (2) a folder"),
        ("Choose one of:\nA, B,\nC. Then", "Choose one of: A, B, C"),
        ("version 5.1 is too old. Update", "version 5.1 is too old"),
        ("", "OSError"),
    ],
)  # fmt: skip
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(OSError(text)) == sentence


class TestDraftVocab:
    """A draft that was trained to propose some tokens only names them itself."""

    def test_none(self, tmp_path: Path) -> None:
        assert own_draft_vocab(str(tmp_path), {}) is None

    def test_a_file_beside_the_config(self, tmp_path: Path) -> None:
        (tmp_path / "ids.json").write_text("[1, 2]")
        assert own_draft_vocab(str(tmp_path), {"draft_vocab": "ids.json"}) == str(tmp_path / "ids.json")

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"names 'ids.json', the ids that it may propose, .* no such file"):
            own_draft_vocab(str(tmp_path), {"draft_vocab": "ids.json"})

    @pytest.mark.parametrize("name", ["../ids.json", "/etc/passwd", "", 7, ["ids.json"]])
    def test_anything_but_a_name(self, tmp_path: Path, name: object) -> None:
        with pytest.raises(CheckpointError, match="must name a file beside it"):
            own_draft_vocab(str(tmp_path), {"draft_vocab": name})
