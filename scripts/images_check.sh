#!/usr/bin/env bash
# Builds both images and runs them, without Docker, a registry of images, a GPU or RunPod:
# `make images-check`. It needs root on Debian, and what `python -m scripts.set_up` makes.
#
# The real base images cannot be had here, so stand-ins bear their names: a minimal Debian with
# Python, whose `python3` is, for the worker, the interpreter of vLLM's CPU environment, mounted
# read-only at build and run. An image runs as Docker would run it, with its own entry point,
# environment, user and directory, below chroot in namespaces of its own.
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
python=$project/.venv/bin/python
cache=${XDG_CACHE_HOME:-$HOME/.cache}/runpod-openai-proxy
suite=bookworm
# libnuma1 is for the CPU build of vLLM.
packages=python3,python3-pip,ca-certificates,libnuma1
model=check/tiny-chat
secret=hf_secret_of_this_check
work=$(mktemp -d)
processes=()
writable=()

ok() { printf 'ok      %s\n' "$*"; }

fail() {
    printf 'FAILED  %s\n' "$*" >&2
    exit 1
}

expect() { # expect WHAT WANTED FOUND
    [ "$2" = "$3" ] || fail "$1: wanted $2, found $3"
    ok "$1: $3"
}

clean() {
    local status=$?
    trap - EXIT
    [ "$status" -eq 0 ] || tail -n 40 "$work"/*.log >&2 2>/dev/null || true
    for process in "${processes[@]}"; do stop "$process" || true; done
    # Nothing is mounted here that other processes see; should that ever change, their files stay.
    rm -rf --one-file-system "$work"
    exit "$status"
}

# stop PROCESS: SIGTERM, and SIGKILL for what is still there after 30 s. Its exit code is ours.
stop() {
    local code=0
    kill -TERM "$1" 2>/dev/null || true
    (
        for _ in {1..300}; do kill -0 "$1" 2>/dev/null || exit 0; sleep 0.1; done
        kill -KILL "$1"
    ) &
    wait "$1" 2>/dev/null || code=$?
    wait $!
    return "$code"
}

# until_true SECONDS PROCESS COMMAND...: repeat until the command works. Fails when the time is over
# or the process has ended.
until_true() {
    local deadline=$((SECONDS + $1)) process=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        kill -0 "$process" 2>/dev/null || fail "it ended before this worked: $*"
        [ "$SECONDS" -lt "$deadline" ] || fail "not in time: $*"
        sleep 0.2
    done
}

free_port() {
    "$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# set_up EXPRESSION: a path that the set-up knows.
set_up() { (cd "$project" && "$python" -c "import scripts.set_up as s; print(s.$1)"); }

install_programs() {
    local missing=()
    [ "$(id -u)" -eq 0 ] || fail "run as root: images are built and run below chroot"
    [ -x "$python" ] || fail "no $python: run make setup"
    vllm_python=$(set_up 'vllm_python()')
    [ -x "$vllm_python" ] || fail "no vLLM at $vllm_python: run make setup"
    tiny_model=$(set_up TINY_CHAT.folder)
    [ -d "$tiny_model" ] || fail "no model at $tiny_model"
    for program in buildah debootstrap curl; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ "${#missing[@]}" -eq 0 ] && return
    command -v apt-get >/dev/null || fail "install first: ${missing[*]}"
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# buildah, with its storage inside our own directory.
image() { buildah --storage-driver vfs --root "$work/images" --runroot "$work/run" "$@"; }

# The file system of both stand-ins, from the mirror that apt uses here.
debian() {
    local tarball=$cache/debian-$suite-${packages//,/-}.tar mirror
    if [ ! -f "$tarball" ]; then
        # shellcheck disable=SC2016  # the variable is apt's
        mirror=$(apt-get indextargets --format '$(REPO_URI)' \
            'Created-By: Packages' "Codename: $suite" 'Component: main' | head -n 1)
        # Bash forgets `set -e` inside $(...), and half a system must not be kept for the next time.
        debootstrap --variant=minbase --include="$packages" \
            "$suite" "$work/debian" ${mirror:+"$mirror"} >"$work/debootstrap.log" \
            || fail "debootstrap failed"
        rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/*
        mkdir -p "$cache"
        tar -C "$work/debian" -cf "$tarball.part" . || fail "no room for $tarball"
        mv "$tarball.part" "$tarball"
        rm -rf "$work/debian"
    fi
    echo "$tarball"
}

# stand_in NAME INTERPRETER [NAME=VALUE...]: a base image whose `python` and `python3` are the
# interpreter. What pip needs to know about this machine is its environment, so that no Dockerfile
# has to know.
stand_in() {
    local name=$1 interpreter=$2 tarball container setting
    local settings=("${@:3}")
    tarball=$(debian)
    container=$(image from scratch)
    image add -q "$container" "$tarball" / >/dev/null
    printf '#!/bin/sh\nexec %q "$@"\n' "$interpreter" >"$work/python"
    for setting in /usr/local/bin/python /usr/local/bin/python3; do
        image copy -q --chmod 755 "$container" "$work/python" "$setting" >/dev/null
    done
    mapfile -t -O "${#settings[@]}" settings < <(env | grep -E '^(PIP_|SSL_CERT_|[a-z]+_proxy=)')
    for setting in "${settings[@]}"; do image config --env "$setting" "$container"; done
    image commit -q "$container" "$name" >/dev/null
    image rm "$container" >/dev/null
}

# default ARGUMENT NAME: the argument's default in Dockerfile.NAME.
default() { sed -n "s/^ARG $1=//p" "$project/Dockerfile.$2"; }

# build NAME [OPTION...]: Dockerfile.NAME, with this machine's certificates and pip's settings.
build() {
    local name=$1 path options=("${@:2}")
    for path in /etc/ssl/certs /etc/pip.conf; do
        [ -e "$path" ] && options+=(--volume "$path:$path:ro")
    done
    image build --isolation chroot --format docker --pull=never "${options[@]}" \
        -f "$project/Dockerfile.$name" -t "$name" "$project" >"$work/build-$name.log" 2>&1 \
        || fail "Dockerfile.$name does not build"
    ok "Dockerfile.$name builds"
}

# runner NAME [PATH...]: make "$work/run-NAME", which runs the image with the PATHs mounted
# read-only, and its own files as well but for the folders in `writable`, if there are any. Its
# arguments, where given, stand in for the image's command; `health` is the image's health check.
# RunPod's and the proxy's settings come through from its environment. As in a container the command
# is process 1, which the kernel spares the signals it does not handle.
runner() {
    local name=$1 volumes=("${@:2}")
    {
        printf '#!/usr/bin/env bash\nset -euo pipefail\n'
        printf 'tree=%q\nvolumes=(%s)\nwritable=(%s)\n' \
            "$(tree_of "$name")" "${volumes[*]@Q}" "${writable[*]@Q}"
        image inspect --type image "$name" | "$python" -c '
import json, shlex, sys
config = json.load(sys.stdin)["Docker"]["config"]
user = config.get("User") or "0:0"
home = "/root" if user == "0:0" else "/"
health = (config.get("Healthcheck") or {}).get("Test", ["NONE"])[1:]
print("user=" + shlex.quote(user))
print("directory=" + shlex.quote(config.get("WorkingDir") or "/"))
print("settings=(" + shlex.join(["HOME=" + home, *config["Env"]]) + ")")
print("command=(" + shlex.join(config["Entrypoint"] + (config["Cmd"] or [])) + ")")
print("health=(" + shlex.join(health) + ")")'
        cat <<'RUNNER'
if [ -z "${INSIDE:-}" ]; then
    INSIDE=yes setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child "$0" "$@" &
    container=$!
    trap 'pkill -TERM -P "$container"' TERM
    while :; do
        code=0
        wait "$container" || code=$?
        kill -0 "$container" 2>/dev/null || break
    done
    echo "$code" >"$0.code"
    exit "$code"
fi
if [ "${#writable[@]}" -gt 0 ]; then
    mount --bind "$tree" "$tree"
    for path in "${writable[@]}"; do mount --bind "$tree$path" "$tree$path"; done
    mount -o remount,bind,ro "$tree"
fi
mount -t proc proc "$tree/proc"
for path in /dev /sys; do mount --rbind "$path" "$tree$path"; done
for path in "${volumes[@]}"; do
    mkdir -p "$tree$path"
    mount --bind "$path" "$tree$path"
    mount -o remount,bind,ro "$tree$path"
done
for name in "${!RUNPOD_@}" "${!PROXY_@}"; do settings+=("$name=${!name}"); done
[ $# -eq 0 ] || command=("$@")
[ "${1:-}" != health ] || command=("${health[@]}")
exec chroot --userspec="$user" --groups= "$tree" \
    /usr/bin/env -i -C "$directory" "${settings[@]}" "${command[@]}"
RUNNER
    } >"$work/run-$name"
    chmod +x "$work/run-$name"
}

# tree_of NAME: a container's file system, made from the image at the first call.
tree_of() {
    [ -f "$work/$1.container" ] || image from "$1" >"$work/$1.container"
    image mount "$(cat "$work/$1.container")"
}

# still_running NAME: is any process left inside the image's file system?
still_running() {
    local tree
    tree=$(tree_of "$1")
    for root in /proc/[0-9]*/root; do
        [ "$(readlink "$root" 2>/dev/null)" != "$tree" ] || return 0
    done
    return 1
}

proxy_image() {
    local port process url code=0 settings key
    local writable=(/tmp /var/lib/proxy) # as `docker run --read-only` has it, with a volume
    stand_in "$(default BASE proxy)" /usr/bin/python3
    build proxy
    runner proxy
    port=$(free_port)
    url=http://127.0.0.1:$port
    settings=(PROXY_PORT="$port" PROXY_API_KEYS=sk-check PROXY_MODELS=tiny-chat
        RUNPOD_API_KEY=rpa_check RUNPOD_ENDPOINT_ID=check RUNPOD_ENDPOINT_BASE_URL="$url/v2")
    expect "files of the image itself are read-only" True "$("$work/run-proxy" python -c \
        'import os; print(bool(os.statvfs("/").f_flag & os.ST_RDONLY))')"
    key=$("$work/run-proxy" python -m proxy keys create alice 2>"$work/keys.log")
    env "${settings[@]}" "$work/run-proxy" >"$work/proxy.log" 2>&1 &
    process=$!
    processes+=("$process")
    until_true 60 "$process" curl -fs -m 5 "$url/health"
    ok "GET /health answers"
    expect "GET /v1/models without a key" 401 "$(status_of "$url/v1/models")"
    expect "GET /v1/models with a key" 200 \
        "$(status_of "$url/v1/models" -H 'Authorization: Bearer sk-check')"
    expect "GET /v1/models with a key of the database" 200 \
        "$(status_of "$url/v1/models" -H "Authorization: Bearer $key")"
    env "${settings[@]}" "$work/run-proxy" health || fail "the health check of a healthy proxy"
    ok "the health check passes"
    expect "user" 10001 "$(ps -o uid= -p "$(pgrep -P "$(pgrep -P "$process")")" | tr -d ' ')"
    [ -n "$(find "$(tree_of proxy)/var/lib/proxy" -type f)" ] || fail "no journal of jobs"
    ok "the journal of jobs is writable"
    stop "$process" || code=$?
    expect "exit code after SIGTERM" 0 "$code"
    ! env "${settings[@]}" "$work/run-proxy" health 2>/dev/null || fail "healthy with no proxy"
    ok "the health check fails once the proxy is gone"
}

status_of() { curl -s -o /dev/null -m 10 -w '%{http_code}' "$@"; }

worker_image() {
    local hub volumes version base options=() path
    mapfile -t volumes < <("$vllm_python" -c '
import os, sys
print(*sorted({sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix)} - {"/usr"}), sep="\n")')
    for path in "${volumes[@]}"; do options+=(--volume "$path:$path:ro"); done
    printf %s "$secret" >"$work/secret"
    start_hub
    hub=${processes[-1]}
    version=$(default VLLM_VERSION worker)
    base=$(default BASE worker)
    # float32 for the reason that scripts/models.py gives: AMX in bfloat16 kills vLLM 0.32.
    # shellcheck disable=SC2016  # the variable is the Dockerfile's
    stand_in "${base/'${VLLM_VERSION}'/$version}" "$vllm_python" \
        HF_ENDPOINT="http://127.0.0.1:$hub_port" \
        VLLM_CPU_KVCACHE_SPACE=1 ENFORCE_EAGER=true DTYPE=float32 MAX_MODEL_LEN=1024
    build worker "${options[@]}" --build-arg MODEL_NAME="$model" \
        --secret id=HF_TOKEN,src="$work/secret"
    stop "$hub" || true
    runner worker "${volumes[@]}"
    secret_is_gone
    answers_a_job
}

# The model is gated: the hub refuses a build that does not hand on its secret.
start_hub() {
    hub_port=$(free_port)
    "$python" "$project/scripts/hub.py" "$tiny_model" --model "$model" --token "$secret" \
        --port "$hub_port" >"$work/hub.log" 2>&1 &
    processes+=($!)
    until_true 30 $! curl -s "http://127.0.0.1:$hub_port"
}

secret_is_gone() {
    local tree
    tree=$(tree_of worker)
    [ -d "$tree/opt/models" ] || fail "no model in the image"
    ! grep -rqF "$secret" "$tree/opt" "$tree/root" "$tree/run" "$tree/tmp" "$tree/var" \
        || fail "the build secret is in the image"
    ! image inspect --type image worker | grep -qF "$secret" || fail "the image's history tells it"
    ok "the gated model is in the image, its token is not"
}

# The image behind the emulator, as RunPod would run it: started for a job and stopped when idle.
# The hub is gone by now, so the model is found in the image or not at all.
answers_a_job() {
    local port process url
    port=$(free_port)
    url=http://127.0.0.1:$port/v2/check
    (cd "$project" && exec "$python" -m emulator --port "$port" --api-key rpa_check \
        --endpoint check --worker "$work/run-worker" --log-dir "$work") >"$work/emulator.log" 2>&1 &
    process=$!
    processes+=("$process")
    until_true 30 "$process" curl -s -m 5 "http://127.0.0.1:$port"
    # No longer: RunPod, and so the emulator, gives up on a silent connection after 100 s.
    job=$(ask "$url/runsync?wait=80000" -H 'Content-Type: application/json' \
        -d '{"input": {"prompt": "Hello", "sampling_params": {"max_tokens": 16}}}')
    until_true 900 "$process" has_ended "$url/status/$(field id "$job")"
    expect "status of a job" COMPLETED "$(field status "$job")"
    expect "model that answered it" "$model" "$(field output.0.model "$job")"
    [ -n "$(field output.0.choices.0.text "$job")" ] || fail "an empty answer: $job"
    until_true 120 "$process" test -s "$work/run-worker.code"
    expect "exit code of the idle worker" 0 "$(cat "$work/run-worker.code")"
    ! still_running worker || fail "a process outlives the worker"
    stop "$process" || true
}

ask() { curl -sS -m 90 -H 'Authorization: Bearer rpa_check' "$@"; }

# has_ended URL: has the job a last status? Keeps what was said of it.
has_ended() {
    local status
    job=$(ask "$1") && status=$(field status "$job") && [[ $status != IN_* ]]
}

# field PATH JSON: one value.
field() {
    "$python" -c '
import json, sys
value = json.loads(sys.argv[2])
for key in sys.argv[1].split("."):
    value = value[int(key) if key.isdigit() else key]
print(value)' "$@"
}

sizes() {
    image images --format '{{.Size}}  {{.Name}}:{{.Tag}}'
    du -sh "$(tree_of proxy)/opt/proxy" "$(tree_of worker)/opt/worker" | sed "s|$work.*/opt|/opt|"
}

trap clean EXIT
trap 'exit 130' INT TERM
install_programs
proxy_image
worker_image
sizes
