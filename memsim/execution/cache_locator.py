"""Where Numba looks for compiled kernels: memsim's own cache, also one that cannot be written."""

from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator


class CacheLocator(UserProvidedCacheLocator):  # type: ignore[misc]
    """Numba's locator of ``NUMBA_CACHE_DIR``, which passes over a directory that it cannot write.

    Named to Numba by ``NUMBA_CACHE_LOCATOR_CLASSES``. What is there already is of use on a read-only mount, too.
    """

    def ensure_cache_path(self) -> None:
        """Create the directory of a kernel's file unless it exists.

        Raises:
            OSError: It cannot be written.
        """
        if not Path(self.get_cache_path()).is_dir():
            super().ensure_cache_path()
