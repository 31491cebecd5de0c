__version__ = "0.2.0"

# Names load on first use: `import slowconv` costs next to nothing, and matplotlib is only imported if you plot.
# __init__.pyi says which names there are, and from where.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
