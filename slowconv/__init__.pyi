from .convs import conv as conv
from .convs import def_device as def_device
