# One daemon after the other behind tcm_loop, the same loads on both. /mnt/load says how long: SECONDS WARM-UP-SECONDS, then the loads' names.
# Of each load: fio's JSON in /out/DAEMON.LOAD.json, and what the daemon took in /out/DAEMON.LOAD.cost: clock ticks and wake-ups.
. "$(dirname "$0")/../../e2e/vm/jobs/configfs.sh"
set -u
read -r seconds warm_up loads </mnt/load
MiB=$((1024 * 1024))

# All threads' CPU, in ticks, and how often one of them was woken.
cost() {
  local ticks wakeups
  ticks=$(sed 's/.*) //' "/proc/$daemon/stat" | awk '{print $12 + $13}')
  wakeups=$(cat /proc/$daemon/task/*/status | awk '/^voluntary_ctxt_switches/ {sum += $2} END {print sum}')
  echo "$ticks $wakeups"
}

# measure LOAD FIO-OPTIONS: on $device.
measure() {
  local load=$1 before after
  shift
  wanted "$load" || return 0
  before=$(cost)
  fio --name="$load" --filename="$device" --direct=1 --ioengine=libaio --time_based --runtime="$seconds" --randrepeat=1 "$@" \
    --eta=never --output-format=json --output="/out/$name.$load.json" || { cat "/out/$name.$load.json"; return 1; }
  after=$(cost)
  echo "$before $after" | awk '{print $3 - $1, $4 - $2}' >"/out/$name.$load.cost"
}

# warm SECONDS FIO-OPTIONS: a load like those that are measured next.
warm() {
  [ "$1" -gt 0 ] || return 0
  fio --name=warm --filename="$device" --direct=1 --ioengine=libaio --time_based --runtime="$1" --bs=4k --iodepth=16 "${@:2}" --eta=never \
    --output=/out/warm.txt || return 1
  # What it has left to be written back is not the next load's to wait for.
  sync
}

# Whether one of the loads is wanted.
wanted() {
  local load
  for load in "$@"; do
    case " $loads " in *" $load "*) return 0 ;; esac
  done
  return 1
}

# loads_of DAEMON HANDLER WARM-UP-SECONDS
loads_of() {
  local direction
  name=$1
  if wanted allocating-4k allocating-64k; then
    begin "$2" new 4096 && warm "$3" --rw=randwrite --offset=2g --size=1g || return 1
    measure allocating-4k --rw=randwrite --bs=4k --iodepth=16 --size=2g || return 1
    measure allocating-64k --rw=write --bs=64k --iodepth=4 --offset=3g --size=1g || return 1
    end || return 1
  fi
  wanted read-4k batched-read-4k write-4k read-1m write-1m || return 0
  begin "$2" full 128 && warm "$3" --rw=randread || return 1
  measure read-4k --rw=randread --bs=4k --iodepth=16 || return 1
  measure batched-read-4k --rw=randread --bs=4k --iodepth=16 --iodepth_batch_submit=16 --iodepth_batch_complete_min=8 || return 1
  measure write-4k --rw=randwrite --bs=4k --iodepth=16 || return 1
  # Large commands go other ways through the program.
  for direction in read write; do
    wanted $direction-1m || continue
    warm $(($3 / 6)) --rw=$direction --bs=1m --iodepth=4 || return 1
    measure $direction-1m --rw=$direction --bs=1m --iodepth=4 || return 1
  done
  end
}

# begin HANDLER KIND MIB: the disk of $name.
begin() {
  make_backstore "$1" "/mnt/images/$name-$2.qcow2" $(($3 * MiB)) hw_max_sectors=2048 && map_loop
}

end() { unmap_loop "$loop" && remove_backstore "$backstore"; }

tcmu-runner >/out/tcmu-runner.log 2>&1 &
daemon=$!
for _ in $(seq 300); do
  dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner \
    string:org.kernel.TCMUService1 | grep -q true && break
  sleep 0.1
done
loads_of tcmu-runner qcow 0 || exit 1
stop_daemon
start_daemon && loads_of lunette qcow2 "$warm_up" || exit 1
stop_daemon
for name in lunette tcmu-runner; do qemu-img check -q "/mnt/images/$name-new.qcow2" || echo "not clean: $name-new.qcow2"; done
exit 0
