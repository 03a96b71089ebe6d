"""The former place of `visionssm.engine.inference.classifier`, kept for programs that import it from here."""

from .inference.classifier import Classifier, imagenet_classes, load_classifier

__all__ = ["Classifier", "imagenet_classes", "load_classifier"]
