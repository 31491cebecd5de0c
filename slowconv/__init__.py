"""Modules:

- `slowconv.sample.make_sample`: Makes `fashion_mnist.parquet` beside this script from a full copy of Fashion-MNIST:"""

__version__ = "0.1.0"

# Names are loaded on first use: `import slowconv` costs nothing, and the lesson that needs no plots loads none.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
