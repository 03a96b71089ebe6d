# Everything here runs on a machine that has only Python 3.10 or newer, make and gcc.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
WORK ?= work
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo demo-segmentation test test-all openmmlab lint timm-suite parity clean

help:
	@echo "make demo       train, evaluate and use a small model on handwritten digits; results in $(WORK)/demo"
	@echo "make demo-segmentation   find digits in scenes of several, pixel by pixel, with the demo's model and mmseg"
	@echo "make test       set up and run the tests that every change must pass"
	@echo "make test-all   every variant, recorded case and timm's own model tests; writes a report to reports/"
	@echo "make openmmlab  add what segmentation with mmseg needs (nothing is compiled)"
	@echo "make lint       ruff and mypy"
	@echo "make timm-suite PATTERNS='*vmamba*'   timm's own model tests on our models"
	@echo "make parity TIMM=DIR   our trainer against timm's train.py, from a checkout of timm"
	@echo "make clean      remove $(VENV) and $(WORK)"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# mmcv-lite is mmcv without its compiled operators; a compiled one that is already there stays. The two builds of OpenCV
# share a folder: the one that needs no display libraries must come last.
$(VENV)/.openmmlab: $(VENV)/.installed
	$(PIP) install -c constraints.txt onedl-mmengine onedl-mmsegmentation
	$(BIN)/python -c "import mmcv" 2>/dev/null || $(PIP) install -c constraints.txt --no-deps mmcv-lite
	$(PIP) install -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	@touch $@

openmmlab: $(VENV)/.openmmlab

demo: $(VENV)/.installed
	$(BIN)/python tools/prepare_digits.py --output $(WORK)/digits
	$(BIN)/python tools/train.py -c configs/classification/digits/test_vmamba.yaml \
		--data-dir $(WORK)/digits --output $(WORK)/demo --overwrite
	$(BIN)/python tools/validate.py --checkpoint $(WORK)/demo/last.pth.tar --data-dir $(WORK)/digits \
		--results-file $(WORK)/demo/validation.csv
	$(BIN)/python tools/predict.py $(WORK)/digits/validation --checkpoint $(WORK)/demo/last.pth.tar \
		--output $(WORK)/demo/predictions.png
	@echo "pictures: $(WORK)/demo/predictions.png (mistakes first), $(WORK)/demo/curve.png"

SCENES := $(WORK)/digit_scenes
demo-segmentation: $(VENV)/.openmmlab
	test -f $(WORK)/demo/last.pth.tar || $(MAKE) demo
	$(BIN)/python tools/prepare_digits.py --scenes --output $(SCENES)
	$(BIN)/python tools/openmmlab_train.py configs/segmentation/digits/upernet_test_vmamba_digits.py \
		--work-dir $(WORK)/demo-segmentation --cfg-options model.backbone.pretrained=$(WORK)/demo/last.pth.tar \
		train_dataloader.dataset.data_root=$(SCENES) val_dataloader.dataset.data_root=$(SCENES)
	@echo "pictures, truth beside prediction: $(WORK)/demo-segmentation/*/vis_data/vis_image"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint $(VENV)/.openmmlab
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: lint $(VENV)/.openmmlab
	$(BIN)/python tests/report.py

timm-suite: $(VENV)/.dev
	$(BIN)/python tests/timm_suite/run.py $(PATTERNS)

# our trainer against timm's own train.py from one recipe: make parity TIMM=<checkout of timm>
parity: $(VENV)/.dev
	$(BIN)/python tools/timm_parity.py --timm $(TIMM)

clean:
	rm -rf $(VENV) $(WORK)
