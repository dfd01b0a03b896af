# Two commands do all: `make run` and `make test`. Everything is installed into .venv from a lock.

PYTHON ?= python3.11
# Extra arguments for pip, for instance an index: make run PIP_ARGS="--extra-index-url URL"
PIP_ARGS ?=
LOCK ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
BIN := .venv/bin
INSTALLED := .venv/.installed-$(LOCK)

export DVC_NO_ANALYTICS = 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test cluster-test lint types ui real umurl sample-study golden bench chaos fuzz image clean

# Members trained side by side; each gets its share of the cores.
JOBS ?= 2

run: $(INSTALLED)
	@sixstream run --jobs $(JOBS)

$(INSTALLED): locks/$(LOCK).txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r locks/$(LOCK).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --no-build-isolation -e .
	touch $@

test: $(INSTALLED) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# The tracking page in a browser.
ui: $(INSTALLED)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --default-artifact-root mlartifacts

# The same graph on a real annotation pickle, SIXSTREAM_DATA set: make real DATASET=florence3d [SPLIT=larp1]
# [PROTOCOL=development] [ONLY=protogcn-joint-s0,agcn-bone-s1] [SET="recipe.epochs=40 …"] [JOBS=2]. Small sets, so all
# of training is used.
PROTOCOL ?= last
real: $(INSTALLED)
	@test -n "$(DATASET)" || { echo "name a dataset: make real DATASET=florence3d" >&2; exit 2; }
	@sixstream workspace --dataset $(DATASET) --protocol $(PROTOCOL) --jobs $(JOBS) \
	  $(if $(SPLIT),--split $(SPLIT)) $(if $(ONLY),--only $(ONLY)) $(if $(SET),--set $(SET))

# Unsupervised pre-training, linear evaluation, retrieval and their picture; about two minutes of one CPU core, and
# the sample's encoder is too small for more threads.
umurl: $(INSTALLED)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} sixstream umurl

# Is the sample hard enough to tell things apart? Four data seeds, about 40 minutes.
sample-study: $(INSTALLED)
	@sixstream sample-study --jobs $(JOBS)

# A line per golden case with the error found and its tolerance; SIXSTREAM_GOLDEN names the files.
golden: $(INSTALLED)
	@test -n "$(SIXSTREAM_GOLDEN)" || { echo "set SIXSTREAM_GOLDEN to the folder of golden files" >&2; exit 2; }
	$(BIN)/python -m pytest -m golden

# Ours beside the plain form, in one run.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.heatmaps
	$(BIN)/python -m benchmarks.data

# Trainings killed at random moments end with the bits of an undisturbed one: 5 runs x 10 kills.
chaos: $(INSTALLED)
	$(BIN)/python tests/chaos.py

# Coverage-guided fuzzing of every reader, SECONDS each; atheris is installed beside, for this alone. Then the property
# tests of `make test` with newly drawn examples.
FUZZED ?= skeleton zip tar pickle annotations torch npz arrays table coco mediapipe openpose
SECONDS ?= 10
fuzz: $(INSTALLED)
	test -d .work/atheris || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps \
	  --target .work/atheris atheris==3.0.0
	@for reader in $(FUZZED); do echo "$$reader"; \
	  PYTHONPATH=.:tests:.work/atheris OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz.py $$reader \
	    -max_total_time=$(SECONDS) -verbosity=0 -print_final_stats=1 || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --hypothesis-profile random tests/test_pose_hostile.py \
	  tests/test_archives.py tests/test_ntu.py tests/test_ntu_quick.py tests/test_pickles.py

# Images are built and the pipeline runs in containers, against a tracking server and an object store over HTTP. Docker
# is installed and started where that is possible.
cluster-test: $(INSTALLED)
	PIP_ARGS="$(PIP_ARGS)" .ci/cluster

# The component image for this machine; `sixstream images build --help` for others, and for machines without the public
# registries.
image: $(INSTALLED)
	$(BIN)/sixstream images build $(LOCK:cuda=gpu)

clean:
	rm -rf .venv .work
