"""Reading weight files: page faults in growing clusters, or whole files asked for in advance, behind a page cache.

A run of faults reads ``cluster_min_bytes`` first and twice as much each time, up to ``cluster_max_bytes`` (XNU's rule,
osfmk/vm/vm_object.c; Linux's readahead grows alike). Every read costs the latency of the flash, and every page a fault.
A file that is asked for in advance is one long read, and the device does one at a time.
"""

from collections.abc import Iterator

from memsim.simulator.device import Numbers
from memsim.simulator.pagecache import Key, PageCache
from memsim.simulator.trace import FileRead


class Flash:
    """The flash and the page cache of one device, as time goes by.

    Args:
        numbers: Of the device.
        cache: Outlives the flash: the next step finds what this one left.
        advised: Whether a page-in asks for its whole file (``madvise``) or faults its way through.
        speed: Share of full speed.
    """

    def __init__(self, numbers: Numbers, cache: PageCache, advised: bool, speed: float = 1.0) -> None:
        self._numbers = numbers
        self._cache = cache
        self._advised = advised
        self._read_bytes_per_s = numbers.flash_read_bytes_per_s * speed
        self._write_bytes_per_s = numbers.flash_write_bytes_per_s * speed
        self._latency_s = numbers.flash_latency_s / speed
        self._free_at_s = 0.0
        self._arrives_at_s: dict[str, float] = {}
        self.read_bytes = 0

    def prefetch(self, now_s: float, read: FileRead) -> None:
        """Start to read a file while something else goes on."""
        self._arrives_at_s[read.file] = self._stream(now_s, sum(self._cache.missing(self._clusters(read))))

    def page_in(self, now_s: float, read: FileRead) -> float:
        """Return the seconds until everything asked for is in memory and mapped."""
        page_bytes = int(self._numbers.page_bytes)
        # Rows that are gathered have a page each, if the file has so many.
        pages = min(read.pieces, -(-read.file_bytes // page_bytes)) or -(-read.n_bytes // page_bytes)
        arrival_s = max(now_s, self._arrives_at_s.pop(read.file, now_s))
        missing = self._cache.missing(self._clusters(read))
        if read.pieces or not self._advised:
            arrival_s = max(arrival_s, self._free_at_s) if missing else arrival_s
            arrival_s += self._faults_s(missing, sequential=not read.pieces)
            self._free_at_s = max(self._free_at_s, arrival_s)
        else:
            arrival_s = max(arrival_s, self._stream(now_s, sum(missing)))
        return arrival_s - now_s + pages * self._numbers.fault_s

    def write(self, now_s: float, n_bytes: int) -> float:
        """Return the seconds until ``n_bytes`` are on the flash."""
        return self._occupy(now_s, self._latency_s + n_bytes / self._write_bytes_per_s) - now_s

    def restore(self, now_s: float, n_bytes: int) -> float:
        """Return the seconds to read ``n_bytes`` back that were written and dropped from memory."""
        return self._stream(now_s, n_bytes) - now_s

    def _stream(self, now_s: float, n_bytes: int) -> float:
        """Return when one long read of ``n_bytes`` ends."""
        if not n_bytes:
            return now_s
        self.read_bytes += n_bytes
        return self._occupy(now_s, self._latency_s + n_bytes / self._read_bytes_per_s)

    def _occupy(self, now_s: float, seconds: float) -> float:
        self._free_at_s = max(now_s, self._free_at_s) + seconds
        return self._free_at_s

    def _faults_s(self, missing: list[int], sequential: bool) -> float:
        """Return the seconds of reading ``missing`` pieces by page faults, in clusters that grow if sequential."""
        total = sum(missing)
        self.read_bytes += total
        if not sequential:
            return len(missing) * self._latency_s + total / self._read_bytes_per_s
        reads, cluster, left = 0, int(self._numbers.cluster_min_bytes), total
        while left > 0:
            reads, left = reads + 1, left - cluster
            cluster = min(2 * cluster, int(self._numbers.cluster_max_bytes))
            if cluster == self._numbers.cluster_max_bytes and left > 0:
                reads, left = reads - (-left // cluster), 0
        return reads * self._latency_s + total / self._read_bytes_per_s

    def _clusters(self, read: FileRead) -> Iterator[tuple[Key, int]]:
        """Yield the clusters of the file that are touched, and how many of their bytes."""
        size = int(self._numbers.cluster_max_bytes)
        if read.pieces:
            # Rows of an embedding: anywhere. Evenly spread, each in a cluster of the smallest size.
            small = int(self._numbers.cluster_min_bytes)
            n_small = max(read.file_bytes // small, 1)
            for piece in sorted({index * n_small // read.pieces for index in range(min(read.pieces, n_small))}):
                yield (read.file, piece * small // size), small
            return
        for start in range(0, read.n_bytes, size):
            yield (read.file, start // size), min(size, read.n_bytes - start)
