"""Makes slowconv/sample/fashion_mnist.parquet from a full copy of Fashion-MNIST:

    python docs/make_sample.py /usr/share/datasets/fashion-mnist

The first 500 training and 100 test images of each class, in the order of the full set, as PNG,
with the columns and features of `zalando-datasets/fashion_mnist` on the Hugging Face hub.
The first row group holds the training images, the second the test images.
"""

import io
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import torch
from PIL import Image

from slowconv.data import fashion_classes, load_images


def first_of_each_class(labels, n):
    return torch.cat([(labels == c).nonzero()[:n, 0] for c in range(10)]).sort().values


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG", optimize=True)
    return {"bytes": file.getvalue(), "path": None}


def main(folder):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(fashion_classes))
    )
    writer, path = None, Path(__file__).parents[1] / "slowconv" / "sample" / "fashion_mnist.parquet"
    for split, n in (("train", 500), ("test", 100)):
        images, labels = load_images("fashion_mnist", split, folder)
        idx = first_of_each_class(labels, n)
        rows = {"image": [png(images[i]) for i in idx], "label": labels[idx].tolist()}
        table = datasets.Dataset.from_dict(rows, features=features).data.table
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=len(table))
    writer.close()
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
