"""What `vllm-pard train` says of bad input and of trouble, and that what was saved stays."""

import errno
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import LETTER_D, VOCAB_SIZE, options, save_target, save_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from vllm_pard.draft_vocab_file import write_draft_vocab
from vllm_pard.errors import PardError
from vllm_pard.training import run_models
from vllm_pard.training.loop.out_of_memory import is_out_of_memory
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.options.train_config import from_mapping
from vllm_pard.training.output.draft_checkpoint import DraftFiles
from vllm_pard.training.run import train

KL = {"loss": {"ce": 0.5, "kl": 1.0}}


def run(asked: dict[str, Any]) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return train(from_mapping(asked), lines.append), lines


def short(asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Two steps."""
    return asked | changes | {"trainer": asked["trainer"] | {"max_steps": 2, "save_steps": 2}}


def losses(folder: Path) -> list[tuple[float, float]]:
    log = json.loads((folder / "receipt.json").read_text())["log"]
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    options(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(world: Path) -> Path:
    return run(options(world, output=str(world / "unbroken")))[0]


def new_config(folder: Path, vocab_size: int) -> str:
    """A config.json of a model with so many vocabulary rows, and the toy's tokenizer."""
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 4, VOCAB_SIZE + 16], ids=["fewer", "more"])
@pytest.mark.parametrize("start", ["new_model", "draft"])
def test_of_unequal_vocabularies_the_shared_ids_are_distilled(
    world: Path, tmp_path: Path, vocab_size: int, start: str
) -> None:
    model = new_config(tmp_path / "model", vocab_size)
    if start == "draft":
        AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(model)).save_pretrained(model)
    asked = short(options(world, output=str(tmp_path / "run"), prune_layers=None, **KL), **{start: model})
    folder, lines = run(asked)
    shared = min(vocab_size, VOCAB_SIZE)
    told = f"the target has {VOCAB_SIZE} vocabulary rows and the draft {vocab_size}; both learn the first {shared}"
    assert lines.count(told) == 1
    assert all(0 < loss < 100 for _, loss in losses(folder))
    assert weights(folder)["lm_head.weight"].shape[0] == vocab_size


def other_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_a_draft_with_another_tokenizer(world: Path, tmp_path: Path) -> None:
    save_target(tmp_path / "draft", num_layers=1)
    other_tokenizer(tmp_path / "draft")
    asked = options(world, output=str(tmp_path / "run"), prune_layers=None, draft=str(tmp_path / "draft"))
    with pytest.raises(PardError, match=r"needs the tokenizer of its target .* token 0 is '!' there and '\"' here"):
        run(asked)


def test_a_model_that_does_not_know_all_tokens(world: Path, tmp_path: Path) -> None:
    asked = options(world, output=str(tmp_path / "run"), prune_layers=None, new_model=new_config(tmp_path / "m", 100))
    with pytest.raises(PardError, match=r"it has 100 vocabulary rows, and the tokenizer gives tokens up to 25\d"):
        run(asked | {"mask_token_id": 99})


def test_no_mask_token_is_left(world: Path, tmp_path: Path) -> None:
    """Every row of the embedding stands for a token with a meaning."""
    target = tmp_path / "target"
    shutil.copytree(world / "target", target)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<mask>")
    plain.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(target)
    model.resize_token_embeddings(258)
    model.save_pretrained(target)
    assert config["vocab_size"] == VOCAB_SIZE
    asked = options(world, output=str(tmp_path / "run"), target=str(target))
    with pytest.raises(PardError, match=r"no mask token was found: .* give the id of a token .* as mask_token_id"):
        run(asked)


def data_file(folder: Path, *lines: str) -> dict[str, Any]:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return {"data": {"sources": [{"path": str(path)}], "max_length": 96}}


def pairs(number: int, answer: str = "defghijkl") -> list[str]:
    return [json.dumps({"prompt": f"{each}: abc", "answer": answer}) for each in range(number)]


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        ([], {}, r"the data '.*data.jsonl' is empty: give it records to train on"),
        ([*pairs(30), "{"], {}, r"line 31 of '.*' is not valid JSON: .* \(or leave such records out with malformed"),
        ([*pairs(30), "", "[1]"], {}, r"line 32 of '.*' must be a JSON object; it is a list"),
        (pairs(30, answer=" "), {}, r"no token to train on: 30 records were read, left out: 30 without an answer"),
        (pairs(30), {"max_length": 4}, r"no token to train on: .* 30 with a prompt longer than a row"),
        (pairs(30), {"max_length": 8, "too_long": "drop"}, r"no token to train on: .* 30 longer than a row"),
        (pairs(2), {}, "holding 12 documents out leaves none to train on"),
        (pairs(30), {"streaming": True}, "a stream has no length: set trainer.max_steps"),
        (pairs(14), {}, r"a step takes 2 packed rows, and the data has 1, 1 times: give more data"),
    ],
    ids=["empty", "no JSON", "a list", "no answer", "long prompts", "dropped", "few", "stream", "less than a step"],
)
def test_data_that_can_not_be_trained_on(
    world: Path, tmp_path: Path, lines: list[str], changes: dict[str, Any], message: str
) -> None:
    asked = options(world, output=str(tmp_path / "run"), **data_file(tmp_path, *lines))
    asked["data"] |= changes
    asked["trainer"] = {name: value for name, value in asked["trainer"].items() if name != "max_steps"}
    with pytest.raises(PardError, match=message):
        run(asked)


def test_what_is_left_out_is_counted_and_kept_in_the_receipt(world: Path, tmp_path: Path) -> None:
    lines = [*pairs(30), "{", json.dumps({"prompt": "x", "answer": ""}), *pairs(2, answer="abc" * 60)]
    asked = short(options(world, output=str(tmp_path / "run"), **data_file(tmp_path, *lines)))
    asked["data"] |= {"malformed": "skip"}
    folder, told = run(asked)
    words = "cut to the length of a row: 2; left out: 1 without an answer, 1 malformed (the first: line 31 of '"
    assert sum(words in line for line in told) == 1
    kept = json.loads((folder / "receipt.json").read_text())["data"]
    assert "1 malformed (the first: line 31 of 'data.jsonl' is not valid JSON" in kept
    assert "1 malformed" in (folder / "README.md").read_text()


def test_a_vocabulary_without_a_token_of_the_answers(world: Path, tmp_path: Path) -> None:
    write_draft_vocab(tmp_path / "vocab.json", [1, 2, 3])
    asked = options(world, output=str(tmp_path / "run"), draft_vocab=str(tmp_path / "vocab.json"))
    with pytest.raises(PardError, match=r"none of its 3 is among the \d+ trained ones: make it from answers"):
        run(asked)


def test_how_much_of_the_answers_a_vocabulary_has_is_told(world: Path, tmp_path: Path) -> None:
    _, lines = run(short(options(world, output=str(tmp_path / "run"), draft_vocab=VOCAB_SIZE)))
    assert any("tokens are trained, 100.0% of those in answers" in line for line in lines)


@pytest.mark.parametrize("changes", [{"mask_token_id": LETTER_D}, {"new_model": 100}], ids=["mask token", "vocabulary"])
def test_a_stream_is_checked_as_it_comes(world: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    asked = short(options(world, output=str(tmp_path / "run")), **changes)
    if "new_model" in changes:
        asked |= {"prune_layers": None, "new_model": new_config(tmp_path / "m", 100), "mask_token_id": 99}
    asked["data"] = asked["data"] | {"streaming": True}
    message = "occurs .* in the training data" if "new_model" not in changes else "it has 100 vocabulary rows"
    with pytest.raises(PardError, match=message):
        run(asked)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a full disk is to a writer: a write that is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_full_disk_leaves_the_checkpoint_before(
    world: Path, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    asked = options(world, output=str(tmp_path / "run"))
    save, num_bytes = DraftFiles.save, 100_000 if part == "weights" else 400_000

    def save_on_a_full_disk(self: DraftFiles, folder: Path, *arguments: Any) -> None:
        if folder.name == "checkpoint-16":
            limit.__enter__()
        save(self, folder, *arguments)

    limit = files_of_at_most(num_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(DraftFiles, "save", save_on_a_full_disk)
        try:
            with pytest.raises(
                PardError, match=r"the checkpoint of step 16 can't be written \(.*\): make room and run"
            ):
                run(asked)
        finally:
            limit.__exit__(None, None, None)
    assert (tmp_path / "run" / "checkpoint-16" / "model.safetensors").exists() is (part == "optimizer")
    folder, lines = run(asked)
    assert "going on from step 8 of 24" in lines
    assert losses(folder) == losses(unbroken)
    assert equal(weights(folder), weights(unbroken))


def test_a_disk_that_is_full_at_the_end(
    world: Path, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(world, output=str(tmp_path / "run"))
    save = DraftFiles.save

    def save_on_a_full_disk(self: DraftFiles, folder: Path, given: Any, is_final: bool) -> None:
        with files_of_at_most(100_000 if is_final else resource.RLIM_INFINITY):
            save(self, folder, given, is_final)

    with monkeypatch.context() as patch:
        patch.setattr(DraftFiles, "save", save_on_a_full_disk)
        with pytest.raises(
            PardError, match=r"the draft can't be written into .* all training is in the last checkpoint"
        ):
            run(asked)
    folder, lines = run(asked)
    assert "going on from step 24 of 24" in lines
    assert equal(weights(folder), weights(unbroken))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_named(world: Path, tmp_path: Path, name: str) -> None:
    asked = short(options(world, output=str(tmp_path / "run")))
    asked["trainer"] |= {"save_steps": 1}
    run(asked)
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")  # as if killed before it
    path = tmp_path / "run" / "checkpoint-1" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PardError, match=r"the checkpoint '.*checkpoint-1' can't be read .* remove that folder"):
        run(asked)
    shutil.rmtree(path.parent)
    assert "the draft is in" in run(asked)[1][-1]


def test_a_damaged_record_is_named_and_left(world: Path, tmp_path: Path) -> None:
    asked = short(options(world, output=str(tmp_path / "run")))
    run(asked)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(PardError, match=r"run.json' must say how its run was started, and can't be read"):
        run(asked)
    assert (tmp_path / "run" / "run.json").read_text() == "{"
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").exists()


def test_gradient_checkpointing_may_change_while_a_run_goes_on(world: Path, tmp_path: Path) -> None:
    """It is what helps against too little memory, and changes nothing of what is learnt."""
    asked = short(options(world, output=str(tmp_path / "run")))
    run(asked)
    asked["trainer"] |= {"gradient_checkpointing": True}
    assert "going on from step 2 of 2" in run(asked)[1]


REFUSALS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]


def test_the_cpu_allocators_refusal_is_known() -> None:
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(1 << 50)
    assert is_out_of_memory(refusal.value)
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
def test_models_that_do_not_fit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise refusal

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(
        PardError, match=r"the models do not fit into memory \(.*take a smaller target or draft, or comp"
    ):
        run(options(world, output=str(tmp_path / "run"), **KL))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_step_that_does_not_fit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    forward = ParallelDraft.forward
    steps = []

    def forward_once_more(self: ParallelDraft, *arguments: Any, **options: Any) -> Any:
        steps.append(1)
        if len(steps) > 12:
            raise refusal
        return forward(self, *arguments, **options)

    asked = options(world, output=str(tmp_path / "run"), **KL)
    asked["trainer"] |= {"save_steps": 4, "eval_strategy": "no", "load_best_model_at_end": False}
    with monkeypatch.context() as patch:
        patch.setattr(ParallelDraft, "forward", forward_once_more)
        with pytest.raises(PardError) as told:
            run(asked)
    message = str(told.value)
    for words in (
        "a step of training does not fit into memory (",
        "lower data.max_length from 96",
        "lower trainer.per_device_train_batch_size from 2 and raise trainer.gradient_accumulation_steps from 1",
        "set trainer.gradient_checkpointing to true",
        "name a folder as target_cache",
        "more processes (torchrun, trainer.fsdp)",
    ):
        assert words in message
    assert message.count(". ") <= 1  # one sentence, but for what torch has to say
    assert "going on from step 12 of 24" in run(asked)[1]


def test_other_errors_are_not_hidden(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(run_models, "load_model", load)
    with pytest.raises(RuntimeError, match="size mismatch"):
        run(options(world, output=str(tmp_path / "run"), **KL))


def test_a_schedule_without_what_it_wants_is_a_sentence(world: Path, tmp_path: Path) -> None:
    asked = short(options(world, output=str(tmp_path / "run")))
    asked["trainer"] |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"num_cycles": 0.5}}
    with pytest.raises(PardError, match=r"'cosine_with_min_lr' can't be had with .* \{'num_cycles': 0.5\}: .*min_lr"):
        run(asked)


def test_the_default_schedule_may_be_named(world: Path, tmp_path: Path) -> None:
    """Its options stay the default's."""
    asked = short(options(world, output=str(tmp_path / "run")))
    asked["trainer"] |= {"lr_scheduler_type": "cosine_with_min_lr"}
    assert "the draft is in" in run(asked)[1][-1]
