"""lab: training runs that hold a textbook's theorems against what a trained model does."""

__version__ = "0.1.0"
