"""From what was asked for to a comparison: everything is checked before the first engine starts."""

from dataclasses import asdict
from statistics import mean
from typing import Any

from vllm_pard.bench.comparison import Comparison
from vllm_pard.bench.load import Request
from vllm_pard.bench.methods import METHODS, REFERENCE_METHODS, Contender, Models, parse_contenders
from vllm_pard.bench.options import BenchmarkError, Options, engine_options
from vllm_pard.bench.plan import Plan
from vllm_pard.bench.prompt_sets import PromptSet, load_prompts
from vllm_pard.bench.report import Report
from vllm_pard.bench.server import check_port, num_cpu_threads
from vllm_pard.bench.session import Results
from vllm_pard.catalog import model_folder
from vllm_pard.checkpoint import check_exists, load_tokenizer
from vllm_pard.conditions import conditions, gpu_names, portable
from vllm_pard.context_length import context_length
from vllm_pard.files import check_folder, check_writable
from vllm_pard.process import has_cpu_engine
from vllm_pard.prompts import prompt_token_ids

DEFAULT_METHODS = {False: "none,pard", True: "ar,pard"}  # by whether the reference engine runs them


def prepare(options: Options) -> Comparison:
    """Find models and prompts, and measure the copy bandwidth while nothing else runs.

    Raises:
        PardError: anything asked for is unknown, missing, or does not go together.
    """
    _check_outputs(options)
    models = Models(
        target=model_folder(options.target),
        draft=options.draft,
        mode=options.mode,
        ar_draft=options.ar_draft,
        eagle3_head=options.eagle3_head,
    )
    contenders = _contenders(options, models)
    _check_folders(options, contenders)
    together = has_cpu_engine() or options.reference if options.together is None else options.together
    if options.port is not None:
        for number in range(len(contenders) if together else 1):
            check_port(options.port + number)
    prompt_set = load_prompts(
        options.prompts, num_prompts=options.num_prompts, seed=options.sampling.seed, category=options.category
    )
    tokenizer = load_tokenizer(models.target)
    requests = [
        # Published figures are without thinking.
        Request(
            id=prompt.id,
            token_ids=prompt_token_ids(tokenizer, prompt.text, prompt.messages, enable_thinking=False),
        )
        for prompt in prompt_set.prompts
    ]
    _check_lengths(options, models, requests)
    plan = Plan(
        contenders=contenders,
        requests=requests,
        sampling=options.sampling,
        concurrencies=options.concurrencies,
        num_runs=options.runs,
        num_warmup=options.warmup,
        requests_per_user=options.requests_per_user,
        together=together,
        verify=options.verify,
    )
    report = _report(options, models, prompt_set, plan)
    return Comparison(options=options, models=models, tokenizer=tokenizer, plan=plan, report=report)


def _report(options: Options, models: Models, prompt_set: PromptSet, plan: Plan) -> Report:
    """Still without results."""
    from vllm_pard.bench.roof import Roof, weight_dtype

    num_threads = None if gpu_names() else num_cpu_threads()
    mean_tokens = mean(len(request.token_ids) for request in plan.requests)
    context = mean_tokens + plan.sampling.max_tokens / 2
    asked = options.dtype if options.reference else str(options.engine_args.get("dtype", options.dtype))
    dtype = weight_dtype(models, asked, keeps_float32=options.reference)
    roof = Roof.measure(models, dtype, num_threads)
    roofs = {
        (contender.label, concurrency): roof.tokens_per_second(contender, concurrency, context)
        for contender in plan.contenders
        for concurrency in plan.concurrencies
    }
    prompts: dict[str, Any] = {"set": portable(prompt_set.name), "source": prompt_set.source}
    prompts |= {"category": prompt_set.category, "available": prompt_set.num_available}
    prompts |= {"number": len(plan.requests), "mean_tokens": mean_tokens}
    measured_under = conditions() | {
        "engine": "reference" if options.reference else "vllm",
        "engine_options": {} if options.reference else engine_options(options, plan.max_concurrency),
        "dtype": options.dtype,
        "weight_dtype": str(dtype).removeprefix("torch."),
        "target": portable(models.target),
        "methods": {contender.label: _describe(contender, models) for contender in plan.contenders},
        "prompts": prompts,
        "sampling": asdict(plan.sampling),
        "runs": plan.num_runs,
        "requests_per_user": plan.requests_per_user,
        "concurrency": plan.concurrencies,
        "together": plan.together,
        "num_threads": num_threads,
        "copy_bandwidth": roof.bandwidth,
    }
    return Report(
        conditions=measured_under,
        results=Results(),
        contenders=plan.contenders,
        roofs=roofs,
        num_gpus=int(options.engine_args.get("tensor_parallel_size", 1)) if gpu_names() else 0,
    )


def _contenders(options: Options, models: Models) -> list[Contender]:
    """The baseline first."""
    table = REFERENCE_METHODS if options.reference else METHODS
    text = options.methods or DEFAULT_METHODS[options.reference]
    contenders = parse_contenders(text, table, models, options.num_speculative_tokens)
    contenders.sort(key=lambda contender: not contender.is_plain)
    if options.verify and (options.sampling.temperature > 0 or not contenders[0].is_plain):
        plain = next(iter(table))
        raise BenchmarkError(
            f"--verify compares greedy outputs with plain decoding's: put {plain!r} among --methods, "
            f"and leave --temperature out; got --methods {text} --temperature {options.sampling.temperature}"
        )
    return contenders


def _check_outputs(options: Options) -> None:
    if options.json_file:
        check_writable(options.json_file)
    if options.plots:
        from vllm_pard.bench.plots import check_matplotlib

        check_folder(options.plots)
        check_matplotlib()


def _check_folders(options: Options, contenders: list[Contender]) -> None:
    """Of models that only an engine looks into."""
    for model in (options.ar_draft, options.eagle3_head, *(contender.own_model for contender in contenders)):
        if model is not None:
            check_exists(model)


def _check_lengths(options: Options, models: Models, requests: list[Request]) -> None:
    """A prompt that does not fit would be refused in the middle of a run."""
    room = context_length(models.target_config, options.engine_args)
    if room is None:
        return
    too_long = [r for r in requests if len(r.token_ids) + options.sampling.max_tokens > room]
    if too_long:
        longest = max(len(request.token_ids) for request in too_long)
        raise BenchmarkError(
            f"{len(too_long)} of {len(requests)} prompts leave no room for {options.sampling.max_tokens} new tokens in "
            f"{room} (the longest has {longest}, e.g. prompt {too_long[0].id!r}): lower --max-tokens, "
            "or give fewer and shorter prompts in a file"
        )


def _describe(contender: Contender, models: Models) -> dict[str, Any]:
    config = contender.speculative_config(models) or {}
    return {key: portable(value) if isinstance(value, str) else value for key, value in config.items()}
