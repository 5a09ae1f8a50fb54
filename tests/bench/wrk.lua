-- What a run of wrk found, as one line of JSON; latencies in microseconds.
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.6f, "p50": %d, "p99": %d, "p999": %d, "max": %d, ',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), latency.max))
  io.write(string.format('"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
