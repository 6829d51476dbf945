# Ends the children of a devstack that has gone away. Reads on its standard input, a pipe from the devstack,
#   watch SIGNAL GROUP    a process group and the signal that asks it to end
#   forget GROUP          it has ended
# and when the pipe closes, asks those that are left to end, and kills them ten seconds later.
trap '' HUP INT TERM
watched=
while read -r word first second; do
  case $word in
    watch) watched="$watched $first:$second" ;;
    forget)
      kept=
      for entry in $watched; do
        [ "${entry#*:}" = "$first" ] || kept="$kept $entry"
      done
      watched=$kept
      ;;
  esac
done
for entry in $watched; do
  kill -s "${entry%%:*}" -- "-${entry#*:}" 2>/dev/null
done
tries=100
while [ "$tries" -gt 0 ]; do
  left=
  for entry in $watched; do
    kill -s 0 -- "-${entry#*:}" 2>/dev/null && left=yes
  done
  [ -n "$left" ] || exit 0
  sleep 0.1
  tries=$((tries - 1))
done
for entry in $watched; do
  kill -s KILL -- "-${entry#*:}" 2>/dev/null
done
