"""What pyproject.toml cannot say: data files belong into an editable installation, too.

setuptools asks its distribution `has_data` before it installs them there, and has no such method: the one that it means
is `has_data_files`.
"""

from setuptools import Distribution, setup

Distribution.has_data = Distribution.has_data_files

setup()
