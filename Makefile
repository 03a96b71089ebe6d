# Everything here runs on a machine that has only Python 3.10 or newer, make and gcc.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
WORK ?= work
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# 1 compiles mmcv's operators for a GPU too
FORCE_CUDA ?= 0

.PHONY: help demo demo-detection demo-segmentation demo-unet demo-restoration test test-all test-compiled openmmlab openmmlab-compiled lint sanitize docs timm-suite ecosystem parity gpu-check clean

help:
	@echo "make demo       train, evaluate and use a small model on handwritten digits; results in $(WORK)/demo"
	@echo "make demo-detection      find digits in scenes of several, with boxes and masks, with the demo's model and mmdet"
	@echo "make demo-segmentation   find digits in scenes of several, pixel by pixel, with the demo's model and mmseg"
	@echo "make demo-unet           the same digits with a small UltraLight VM-UNet and mmseg, from the beginning"
	@echo "make demo-restoration    train a small MambaIR to enlarge photographs, and compare with bicubic interpolation"
	@echo "make test       set up and run the tests that every change must pass"
	@echo "make test-all   every variant, recorded case and timm's own model tests; writes a report to reports/"
	@echo "make openmmlab  add what detection with mmdet and segmentation with mmseg need (nothing is compiled)"
	@echo "make openmmlab-compiled   compile mmcv's own operators, which then take the place of ours"
	@echo "make test-compiled        the tests of detection and segmentation with them"
	@echo "make sanitize   the native scans' tests with sanitizers of addresses and undefined behaviour"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation with every docstring as a site, in $(WORK)/site"
	@echo "make timm-suite PATTERNS='*vmamba*'   timm's own model tests on our models"
	@echo "make ecosystem  pico models through libraries that take any timm model: peft, captum, Lightning and others"
	@echo "make parity TIMM=DIR   our trainer against timm's train.py, from a checkout of timm"
	@echo "make gpu-check  everything about the kernels on a GPU in nine minutes; results in $(WORK)/gpu-check"
	@echo "make clean      remove $(VENV) and $(WORK)"

NATIVE := visionssm/ops/native
$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard $(NATIVE)/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# mmcv-lite is mmcv without its compiled operators, in whose place come ours; a compiled one that is already there stays.
# It asks for the original mmengine, which would lie over the fork. The two builds of OpenCV share a folder: the one that
# needs no display libraries must come last.
$(VENV)/.openmmlab: $(VENV)/.installed
	$(PIP) install -c constraints.txt onedl-mmengine onedl-mmdetection onedl-mmsegmentation
	$(BIN)/python -c "import mmcv" 2>/dev/null || $(PIP) install -c constraints.txt --no-deps mmcv-lite
	$(PIP) install -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	@touch $@

openmmlab: $(VENV)/.openmmlab

# mmcv has no ready-made package with operators. pip keeps what it compiles, so that another environment need not wait.
$(VENV)/.openmmlab-compiled: $(VENV)/.installed
	@echo "mmcv's operators are compiled once, which takes ten to fifteen minutes on two cores"
	$(PIP) install -c constraints.txt "setuptools>=77,<81" wheel ninja psutil
	rm -f $(VENV)/.openmmlab
	$(PIP) uninstall -y mmcv-lite
	MMCV_WITH_OPS=1 FORCE_CUDA=$(FORCE_CUDA) $(PIP) install -c constraints.txt --no-build-isolation onedl-mmcv || { \
		echo "mmcv's operators could not be compiled: install a C++ compiler, make and Python's headers" \
			"(on Debian: apt install g++ make python3-dev) and try again, or use 'make openmmlab', which compiles" \
			"nothing" >&2; exit 1; }
	$(PIP) install -c constraints.txt onedl-mmengine onedl-mmdetection onedl-mmsegmentation
	$(PIP) install -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	$(BIN)/python -c "import torch, mmcv._ext"
	@touch $@ $(VENV)/.openmmlab

openmmlab-compiled: $(VENV)/.openmmlab-compiled

test-compiled: $(VENV)/.openmmlab-compiled $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/openmmlab

demo: $(VENV)/.installed
	$(BIN)/python tools/prepare_digits.py --output $(WORK)/digits
	$(BIN)/python tools/train.py -c configs/classification/digits/test_vmamba.yaml \
		--data-dir $(WORK)/digits --output $(WORK)/demo --overwrite
	$(BIN)/python tools/validate.py --checkpoint $(WORK)/demo/last.pth.tar --data-dir $(WORK)/digits \
		--results-file $(WORK)/demo/validation.csv
	$(BIN)/python tools/predict.py $(WORK)/digits/validation --checkpoint $(WORK)/demo/last.pth.tar \
		--output $(WORK)/demo/predictions.png
	@echo "pictures: $(WORK)/demo/predictions.png (mistakes first), $(WORK)/demo/curve.png"

# the model that the two demos below begin with
$(WORK)/demo/last.pth.tar:
	$(MAKE) demo

SCENES := $(WORK)/digit_scenes
demo-detection: $(VENV)/.openmmlab | $(WORK)/demo/last.pth.tar
	$(BIN)/python tools/prepare_digits.py --scenes --output $(SCENES)
	OMP_NUM_THREADS=1 $(BIN)/python tools/openmmlab_train.py --config configs/detection/digits/mask_rcnn_test_vmamba_digits.py \
		--output $(WORK)/demo-detection --data-dir $(SCENES) \
		--cfg-options model.backbone.pretrained=$(WORK)/demo/last.pth.tar
	@echo "pictures, truth beside prediction: $(WORK)/demo-detection/*/vis_data/vis_image"

demo-segmentation: $(VENV)/.openmmlab | $(WORK)/demo/last.pth.tar
	$(BIN)/python tools/prepare_digits.py --scenes --output $(SCENES)
	OMP_NUM_THREADS=1 $(BIN)/python tools/openmmlab_train.py --config configs/segmentation/digits/upernet_test_vmamba_digits.py \
		--output $(WORK)/demo-segmentation --data-dir $(SCENES) \
		--cfg-options model.backbone.pretrained=$(WORK)/demo/last.pth.tar
	@echo "pictures, truth beside prediction: $(WORK)/demo-segmentation/*/vis_data/vis_image"

demo-unet: $(VENV)/.openmmlab
	$(BIN)/python tools/prepare_digits.py --scenes --output $(SCENES)
	OMP_NUM_THREADS=1 $(BIN)/python tools/openmmlab_train.py --config configs/segmentation/digits/ultralight_vm_unet_digits.py \
		--output $(WORK)/demo-unet --data-dir $(SCENES)
	@echo "pictures, truth beside prediction: $(WORK)/demo-unet/*/vis_data/vis_image"

RESTORED := $(WORK)/demo-restoration
demo-restoration: $(VENV)/.installed
	$(BIN)/python tools/prepare_photos.py --output $(WORK)/photos
	OMP_NUM_THREADS=1 $(BIN)/python tools/train_restoration.py -c configs/restoration/demo.yaml \
		--data-dir $(WORK)/photos --output $(RESTORED) --overwrite
	OMP_NUM_THREADS=1 $(BIN)/python tools/restore.py $(WORK)/photos/validation --degradation bicubic \
		--checkpoint $(RESTORED)/last.pth.tar --output $(RESTORED)/images --results-file $(RESTORED)/figures.csv \
		--picture $(RESTORED)/restored.png
	@echo "pictures: $(RESTORED)/restored.png (before, after, truth), $(RESTORED)/curve.png"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the variable silences an advertisement
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir $(WORK)/site
	@echo "the site: $(WORK)/site/index.html"

test: lint $(VENV)/.openmmlab
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

test-all: lint sanitize $(VENV)/.openmmlab
	$(PIP) install -c constraints.txt -e ".[ecosystem]"
	OMP_NUM_THREADS=1 $(BIN)/python tests/report.py

timm-suite: $(VENV)/.dev
	$(BIN)/python tests/timm_suite/run.py $(PATTERNS)

ecosystem: $(VENV)/.dev
	$(PIP) install -c constraints.txt -e ".[ecosystem]"
	OMP_NUM_THREADS=1 $(BIN)/python tests/report.py ecosystem

# our trainer against timm's own train.py from one recipe: make parity TIMM=<checkout of timm>
parity: $(VENV)/.dev
	$(BIN)/python tools/timm_parity.py --timm $(TIMM)

# one run on a card that must tell everything; GPU_CHECK=--fake-gpu goes through it on a CPU
gpu-check: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu_check.py --output $(WORK)/gpu-check $(GPU_CHECK)

clean:
	rm -rf $(VENV) $(WORK)
