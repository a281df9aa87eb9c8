// Which Prometheus the tests run, and with promtool check the rules: ./build makes both.
module prometheus

go 1.25.0

require github.com/prometheus/prometheus v0.310.0 // Prometheus 3.10
