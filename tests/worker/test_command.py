"""From the environment to vLLM's command line and environment."""

from pathlib import Path

import pytest

from hatch_build import vllm_version
from scripts.lock import VLLM_CPU
from scripts.set_up import VLLM_FLAGS
from worker.command import (
    ENGINE_TIMEOUT,
    printable,
    smaller_footprint,
    vllm_arguments,
    vllm_environment,
)
from worker.errors import SettingsError
from worker.flags import Flag, VLLMFlags
from worker.names import RETIRED, complaints
from worker.settings import WorkerSettings
from worker.translation import unquote, without_quotes

ROOT = Path(__file__).parents[2]

FLAGS = VLLMFlags.parse(VLLM_FLAGS.read_text())
"""The flags of vLLM 0.32.0, as `python -m worker.flags` wrote them."""

NEWER_FLAGS = VLLMFlags.parse(Path(__file__).with_name("vllm_flags_0.33.json").read_text())
"""Those of vLLM 0.33.0, which the image has, by its own parser."""

PATIENT = {ENGINE_TIMEOUT: "1200"}
"""What vLLM's environment always has."""

ENDPOINT = ["--host", "127.0.0.1", "--port", "8123"]


def arguments(settings: WorkerSettings | None = None, **environment: str) -> list[str]:
    """The command line for these variables and a model, without what is always there."""
    return arguments_of(FLAGS, environment, settings)


def newer_arguments(**environment: str) -> list[str]:
    """The same for the newer vLLM."""
    return arguments_of(NEWER_FLAGS, environment)


def arguments_of(
    flags: VLLMFlags, environment: dict[str, str], settings: WorkerSettings | None = None
) -> list[str]:
    words = vllm_arguments(
        {"MODEL_NAME": "org/m"} | environment, settings or WorkerSettings(), flags, 8123
    )
    assert words[-4:] == ENDPOINT
    assert words[:-4].count("--model") == 1
    place = words.index("--model")
    assert words[place + 1] == "org/m"
    return words[:place] + words[place + 2 : -4]


def test_any_flag_is_set_by_its_name_in_upper_case() -> None:
    assert arguments(MAX_MODEL_LEN="4096", GPU_MEMORY_UTILIZATION="0.9") == [
        *("--gpu-memory-utilization", "0.9"),
        *("--max-model-len", "4096"),
    ]


def test_json_passes_through() -> None:
    config = '{"method": "ngram", "num_speculative_tokens": 3}'
    assert arguments(SPECULATIVE_CONFIG=config) == ["--speculative-config", config]


@pytest.mark.parametrize("value", ["true", "1", "yes", "On"])
def test_a_true_switch_is_its_flag(value: str) -> None:
    assert arguments(ENFORCE_EAGER=value) == ["--enforce-eager"]


@pytest.mark.parametrize("value", ["false", "0", "NO"])
def test_a_false_switch_is_its_negation_where_there_is_one(value: str) -> None:
    assert arguments(ENABLE_PREFIX_CACHING=value) == ["--no-enable-prefix-caching"]
    assert arguments(DISABLE_LOG_STATS=value) == []


def test_the_newer_vllm_has_another_negation_for_what_is_enabled_or_disabled() -> None:
    off = {"ENABLE_PREFIX_CACHING": "false", "DISABLE_CASCADE_ATTN": "0", "ENFORCE_EAGER": "no"}
    assert newer_arguments(**off) == [
        *("--enable-cascade-attn", "--disable-prefix-caching", "--no-enforce-eager")
    ]


def test_the_newer_vllm_takes_what_the_older_one_took() -> None:
    older, newer = FLAGS.flags, NEWER_FLAGS.flags
    assert set(older) - set(newer) == set()
    kinds = {name: (newer[name].kind, bool(newer[name].off)) for name in older}
    assert kinds == {name: (flag.kind, bool(flag.off)) for name, flag in older.items()}


def test_the_lists_are_of_the_cpu_build_and_of_the_image() -> None:
    assert f"vllm-cpu=={FLAGS.version}" == VLLM_CPU
    assert NEWER_FLAGS.version == vllm_version(ROOT)


def test_a_switch_that_is_neither_is_refused() -> None:
    with pytest.raises(SettingsError, match="ENFORCE_EAGER must be true or false, not 'perhaps'"):
        arguments(ENFORCE_EAGER="perhaps")


def test_an_empty_value_is_unset() -> None:
    assert arguments(TOOL_CALL_PARSER="", QUANTIZATION="  ", MAX_NUM_BATCHED_TOKENS="0") == []


def test_a_value_that_begins_with_a_dash_is_no_flag() -> None:
    assert arguments(SEED="-1") == ["--seed=-1"]


def test_lists_take_json_commas_or_spaces() -> None:
    adapters = '[{"name": "a", "path": "org/a"}, {"name": "b", "path": "org/b"}]'
    assert arguments(LORA_MODULES=adapters) == [
        "--lora-modules",
        '{"name": "a", "path": "org/a"}',
        '{"name": "b", "path": "org/b"}',
    ]
    assert arguments(LORA_MODULES="a=x b=y") == ["--lora-modules", "a=x", "b=y"]
    assert arguments(LORA_MODULES='{"name": "a"}') == ["--lora-modules", '{"name": "a"}']
    assert arguments(SERVED_MODEL_NAME="a,b, c") == ["--served-model-name", "a", "b", "c"]


def test_the_official_images_names_are_understood() -> None:
    words = arguments(
        OPENAI_SERVED_MODEL_NAME_OVERRIDE="gpt",
        CUSTOM_CHAT_TEMPLATE="{{ messages }}",
        MODEL_REVISION="abc",
        TOKENIZER_NAME="org/t",
        OPENAI_RESPONSE_ROLE="bot",
        SERVED_MODEL_NAME="loses",
    )
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--served-model-name": "gpt",
        "--revision": "abc",
        "--tokenizer": "org/t",
        "--response-role": "bot",
        "--chat-template": "{{ messages }}",
    }


def test_what_means_something_else_in_a_container_is_no_flag() -> None:
    assert arguments(HOST="0.0.0.0", PORT="80", MODEL="x", API_KEY="k", HF_TOKEN="hf_x") == []


def test_extra_arguments_come_last_as_they_are() -> None:
    settings = WorkerSettings(extra_args="--seed 7 --hf-overrides '{\"a\": 1}'")
    words = arguments(settings, SEED="1")
    assert words == ["--seed", "1", "--seed", "7", "--hf-overrides", '{"a": 1}']


def test_a_worker_without_a_model_says_so() -> None:
    with pytest.raises(SettingsError, match="MODEL_NAME is not set"):
        vllm_arguments({}, WorkerSettings(), FLAGS, 1)


def test_a_model_may_come_from_a_config_file_or_extra_arguments() -> None:
    file = {"VLLM_CONFIG_FILE": "/etc/vllm.yaml"}
    assert vllm_arguments(file, WorkerSettings(), FLAGS, 8123) == [
        *("--config", "/etc/vllm.yaml", *ENDPOINT)
    ]
    assert vllm_arguments({}, WorkerSettings(extra_args="--model m"), FLAGS, 8123)[0] == "--model"


def test_a_model_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such folder") as caught:
        arguments(MODEL_NAME=str(tmp_path / "missing"))
    assert caught.value.cause == "model_not_found"
    found = vllm_arguments({"MODEL_NAME": str(tmp_path)}, WorkerSettings(), FLAGS, 1)
    assert found[:2] == ["--model", str(tmp_path)]


def test_the_log_shows_no_secret() -> None:
    words = ["vllm", "--api-key", "s1", "--hf-token=s2", "--seed", "1"]
    assert printable(words) == "vllm --api-key '***' '--hf-token=***' --seed 1"


# The environment of vLLM


def test_vllm_sees_its_own_variables_and_not_runpods() -> None:
    ours = {"HF_TOKEN": "hf_x", "VLLM_USE_DEEP_GEMM": "0", "PATH": "/bin"}
    others = {"RUNPOD_AI_API_KEY": "k", "RUNPOD_WEBHOOK_GET_JOB": "u", "VLLM_API_KEY": "k"}
    others |= {"WORKER_SEAL_SECRET": "s", "WORKER_SEAL_SECRET_OLD": "s"}
    settings = WorkerSettings(base_path=Path("/nowhere"))
    assert vllm_environment(ours | others, settings) == ours | PATIENT


def test_models_are_kept_on_the_network_volume_where_there_is_one(tmp_path: Path) -> None:
    settings = WorkerSettings(base_path=tmp_path)
    assert vllm_environment({}, settings) == PATIENT | {"HF_HOME": f"{tmp_path}/huggingface-cache"}


@pytest.mark.parametrize("name", ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_a_cache_that_is_named_stays(tmp_path: Path, name: str) -> None:
    settings = WorkerSettings(base_path=tmp_path)
    assert vllm_environment({name: "/c"}, settings) == PATIENT | {name: "/c"}


def test_the_engine_may_start_for_as_long_as_the_worker_waits() -> None:
    settings = WorkerSettings(start_timeout_seconds=2400.5)
    assert vllm_environment({}, settings)[ENGINE_TIMEOUT] == "2401"
    assert vllm_environment({ENGINE_TIMEOUT: "60"}, settings)[ENGINE_TIMEOUT] == "60"


# Less memory

SMALLER = ["--enforce-eager", "--max-num-batched-tokens", "2048"]


@pytest.mark.parametrize(
    ("environment", "smaller"),
    [
        ({}, SMALLER),
        ({"ENFORCE_EAGER": "false"}, SMALLER[1:]),
        ({"MAX_NUM_BATCHED_TOKENS": "16384"}, SMALLER[:1]),
        ({"MAX_NUM_BATCHED_TOKENS": "0"}, SMALLER),
        ({"MAX_NUM_SEQS": "256"}, SMALLER),
        ({"MAX_NUM_SEQS": "4096"}, SMALLER[:1]),
        ({"ENABLE_CHUNKED_PREFILL": "false"}, SMALLER[:1]),
        ({"VLLM_EXTRA_ARGS": "--enforce-eager --max-num-batched-tokens=512"}, []),
    ],
)
def test_a_smaller_footprint_leaves_alone_what_the_user_set(
    environment: dict[str, str], smaller: list[str]
) -> None:
    seqs = int(environment.get("MAX_NUM_SEQS", 256))
    extra = environment.get("VLLM_EXTRA_ARGS", "")
    settings = WorkerSettings(max_num_seqs=seqs, extra_args=extra)
    words = arguments(settings, **environment)
    assert smaller_footprint(words, environment, settings) == smaller


# Misspelt settings


def complaint(**environment: str) -> list[str]:
    return list(complaints(environment, FLAGS))


def test_a_near_miss_is_named_with_what_was_meant() -> None:
    assert complaint(MAX_MODEL_LENGTH="1", TENSOR_PARALEL_SIZE="2", GPU_MEM_UTILIZATION="1") == [
        "GPU_MEM_UTILIZATION has no effect: did you mean GPU_MEMORY_UTILIZATION?",
        "MAX_MODEL_LENGTH has no effect: did you mean MAX_MODEL_LEN?",
        "TENSOR_PARALEL_SIZE has no effect: did you mean TENSOR_PARALLEL_SIZE?",
    ]


def test_an_unknown_name_with_our_prefix_is_named() -> None:
    assert complaint(WORKER_GRACE_SECOND="1") == [
        "WORKER_GRACE_SECOND has no effect: did you mean WORKER_GRACE_SECONDS?"
    ]
    assert complaint(WORKER_COFFEE="1") == ["WORKER_COFFEE has no effect: there is no such setting"]


def test_a_retired_name_says_what_to_do() -> None:
    assert complaint(SPECULATIVE_MODEL="x") == [
        "SPECULATIVE_MODEL has no effect: set SPECULATIVE_CONFIG, a JSON object"
    ]


def test_known_and_empty_names_are_no_complaint() -> None:
    assert complaint(MODEL_NAME="m", MAX_CONCURRENCY="3", SEED="1", WORKER_CLS="x", TASKS="") == []


def test_the_variables_of_a_container_are_no_complaint() -> None:
    names = (
        "PATH HOME HOSTNAME PWD OLDPWD SHLVL TERM USER LOGNAME LANG LC_ALL SHELL TZ EDITOR HOST "
        "PORT MODEL DEBIAN_FRONTEND CUDA_VERSION NVIDIA_VISIBLE_DEVICES NVIDIA_REQUIRE_CUDA "
        "NV_CUDA_LIB_VERSION NCCL_VERSION LD_LIBRARY_PATH LIBRARY_PATH PYTHONPATH VIRTUAL_ENV "
        "PYTHON_VERSION PYTHONUNBUFFERED UV_LINK_MODE VLLM_USAGE_SOURCE TORCH_CUDA_ARCH_LIST "
        "RUNPOD_POD_ID RUNPOD_GPU_COUNT RUNPOD_MEM_GB PUBLIC_KEY HF_HUB_ENABLE_HF_TRANSFER "
        "HF_XET_HIGH_PERFORMANCE TRANSFORMERS_OFFLINE TOKENIZERS_PARALLELISM OMP_NUM_THREADS "
        "XDG_CACHE_HOME SSL_CERT_FILE SSL_CERT_DIR HTTP_PROXY NO_PROXY GPG_KEY COLUMNS LINES _ "
        "VLLM_PORT VLLM_CACHE_ROOT VLLM_CONFIG_ROOT VLLM_LOGGING_LEVEL HF_HUB_CACHE HF_HUB_OFFLINE "
        "KUBERNETES_PORT AWS_REGION MALLOC_ARENA_MAX MAX_JOBS CC CXX DEBUG LOG_LEVEL ENVIRONMENT"
    )
    assert complaint(**dict.fromkeys(names.split(), "x")) == []


def test_the_variable_of_a_flag() -> None:
    assert Flag("--all2all-backend", "value").variable == "ALL2ALL_BACKEND"


# Older settings, and quotes that came along


def test_the_official_images_limits_become_json() -> None:
    limits = ["--limit-mm-per-prompt", '{"image": 2, "video": 1}']
    assert arguments(LIMIT_MM_PER_PROMPT="image=2,video=1") == limits
    assert arguments(LIMIT_MM_PER_PROMPT=" image = 2, video:1 ") == limits
    assert arguments(LIMIT_MM_PER_PROMPT=limits[1]) == limits
    with pytest.raises(SettingsError, match="LIMIT_MM_PER_PROMPT must be like image=2,video=1"):
        arguments(LIMIT_MM_PER_PROMPT="image=two")


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("auto", []),
        ("generate", ["--runner", "generate"]),
        ("embed", ["--convert", "embed", "--runner", "pooling"]),
        ("Embedding", ["--convert", "embed", "--runner", "pooling"]),
        ("score", ["--convert", "classify", "--runner", "pooling"]),
        ("reward", ["--convert", "auto", "--runner", "pooling"]),
    ],
)
def test_a_task_becomes_a_runner_and_what_it_converts_to(task: str, flags: list[str]) -> None:
    assert arguments(TASK=task) == flags


def test_a_task_gives_way_to_todays_settings_and_an_unknown_one_is_refused() -> None:
    assert arguments(TASK="embed", RUNNER="auto", CONVERT="none") == [
        *("--convert", "none", "--runner", "auto")
    ]
    with pytest.raises(SettingsError, match="TASK must be one of auto, classify"):
        arguments(TASK="dance")
    assert complaint(TASK="embed") == ["TASK is passed on as RUNNER and CONVERT"]


def test_what_runpods_template_sets_is_named_with_what_replaced_it() -> None:
    template = ("DEVICE", "SCHEDULER_DELAY_FACTOR", "ENABLE_REASONING", "USE_V2_BLOCK_MANAGER")
    others = ("LORA_EXTRA_VOCAB_SIZE", "MAX_SEQ_LEN_TO_CAPTURE", "NUM_LOOKAHEAD_SLOTS")
    names = sorted({*template, *others, "PREEMPTION_MODE"})
    said = complaint(**dict.fromkeys(names, "x"))
    assert [line.partition(" has no effect: ")[0] for line in said] == names


def test_no_retired_name_is_a_flag() -> None:
    for flags in (FLAGS, NEWER_FLAGS):
        assert set(RETIRED) & {flag.variable for flag in flags.flags.values()} == set()


def test_prefills_that_are_not_chunked_keep_their_batch_in_the_newer_vllm_too() -> None:
    environment = {"ENABLE_CHUNKED_PREFILL": "false"}
    words = newer_arguments(**environment)
    assert smaller_footprint(words, environment, WorkerSettings()) == SMALLER[:1]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ('"4096"', "4096"),
        ("'4096'", "4096"),
        ("“4096”", "4096"),
        ("'\"4096\"'", "4096"),
        ('""', ""),
        ('\'{"method": "ngram"}\'', '{"method": "ngram"}'),
        ('"{\\"method\\": \\"ngram\\"}"', '{"method": "ngram"}'),
        ('{"method": "ngram"}', '{"method": "ngram"}'),
        ('"a" "b"', '"a" "b"'),
        ("--x 'a b'", "--x 'a b'"),
        ('"', '"'),
        ("'4096\"", "'4096\""),
    ],
)
def test_quotes_around_a_whole_value_are_taken_off(given: str, meant: str) -> None:
    assert without_quotes(given) == meant


def test_quotes_that_came_along_are_named_and_only_those_of_settings_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment = {"MAX_MODEL_LEN": '"4096"', "SEED": "1", "OTHER": '"x"', "HF_TOKEN": '"hf_x"'}
    unquote(environment, ["MAX_MODEL_LEN", "SEED", "HF_TOKEN", "DTYPE"])
    assert environment == {
        "MAX_MODEL_LEN": "4096",
        "SEED": "1",
        "OTHER": '"x"',
        "HF_TOKEN": "hf_x",
    }
    assert [record.message.split()[0] for record in caplog.records] == ["HF_TOKEN", "MAX_MODEL_LEN"]
    assert "hf_x" not in caplog.text


@pytest.mark.parametrize("name", ['"org/m', "org/m'", "org/“m"])
def test_a_model_with_a_quote_on_one_side_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="MODEL_NAME has a quotation mark in it"):
        unquote({"MODEL_NAME": name}, ["MODEL_NAME"])
