#!/bin/sh
# The mean of each decade of a table year,value, and by how much it rose over the decade before.
# Compute-to-Data hands it its input files in $INPUTS and takes what it leaves in $OUTPUTS.
set -eu
echo "inputs: $DIDS"
for table in "$INPUTS"/*/*; do
  echo "reading $(wc -l < "$table" | tr -d ' ') lines"
  awk -F, -v result="$OUTPUTS/result.csv" '
    function finish() {
      if (years == 0) return
      mean = sum / years
      rise = before == "" ? "" : sprintf("%.2f", mean - before)
      printf "%d,%d,%.2f,%s\n", decade, years, mean, rise > result
      printf "the %ds: %d years, mean %.2f ppm\n", decade, years, mean
      before = mean; years = 0; sum = 0
    }
    BEGIN { print "decade,years,mean_ppm,rise_ppm" > result }
    NR > 1 {
      if ($1 - $1 % 10 != decade) { finish(); decade = $1 - $1 % 10 }
      sum += $2; years++
    }
    END { finish() }
  ' "$table"
done
echo "done"
