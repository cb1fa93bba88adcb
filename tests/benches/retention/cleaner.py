"""A cleaner of the usual kind: all pages, sorted by their push, the newest and main are kept, the rest is deleted.

    cleaner.py REPOSITORY KEEP

It is what the benchmark of retention is compared with; AWS_ENDPOINT_URL says where it cleans.
"""

import json
import resource
import sys
import time

import boto3

PROTECTED = {"app.main"}


def clean(ecr, repository, keep):
    images = []
    pages = ecr.get_paginator("describe_images").paginate(
        repositoryName=repository, PaginationConfig={"PageSize": 1000}
    )
    for page in pages:
        images.extend(page["imageDetails"])
    images.sort(key=lambda image: image["imagePushedAt"], reverse=True)
    old = [image for image in images[keep:] if not PROTECTED & set(image.get("imageTags", []))]
    deleted = 0
    for start in range(0, len(old), 100):
        ids = [{"imageDigest": image["imageDigest"]} for image in old[start : start + 100]]
        answer = ecr.batch_delete_image(repositoryName=repository, imageIds=ids)
        deleted += len(ids) - len(answer["failures"])
    return len(images), deleted


def peak_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def main():
    began = time.monotonic()
    images, deleted = clean(boto3.client("ecr"), sys.argv[1], int(sys.argv[2]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "images": images,
                "deleted": deleted,
                "cpu_ms": int(1000 * (used.ru_utime + used.ru_stime)),
                "memory_kib": peak_memory(),
                "wall_ms": int(1000 * (time.monotonic() - began)),
            }
        )
    )


main()
