__version__ = "0.1.0"

# A name is loaded when it is first used: `import slowconv` costs next to nothing, and who draws nothing loads no plots.
# Which names there are, and from where, stands in __init__.pyi.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
