# The daemon killed, dead for long, and ended, under reads and writes. What initiators see of it, and what is in the image each time.
. "$(dirname "$0")/configfs.sh"
set -u
images=/mnt/images
disk_image=$images/disk.qcow2
MiB=$((1024 * 1024))
# Where what was flushed is looked for in the image itself: out of the way of the load. One piece for each kill.
marks=480
kills=10

start_daemon || exit 1

# fio on a part of the disk, in MiB: each block that it writes is read back and compared.
verified_load() {
  fio --name="$1" --filename="$2" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k-64k --offset="$3m" --size="$4m" \
    --thinktime=20ms --thinktime_blocks=4 --verify=crc32c --verify_fatal=1 --do_verify=1 --eta=never --output="/out/fio-$1.txt"
}

# Writers over one part after the other, so that each writes first where no cluster is, and readers beside them, until end_load.
begin_load() {
  rm -f /run/load-ends
  writers=()
  local writer
  for writer in 0 1; do
    (
      for round in $(seq 0 999); do
        [ -e /run/load-ends ] && exit 0
        verified_load "writer$writer" "$1" $((16 + writer * 224 + 16 * (round % 14))) 16 || exit 1
      done
    ) &
    writers+=($!)
  done
  fio --name=reader --filename="$1" --direct=1 --ioengine=libaio --iodepth=4 --rw=randread --bs=4k-64k --size=448m --thinktime=50ms \
    --thinktime_blocks=4 --time_based --runtime=900 --eta=never --output=/out/fio-reader.txt &
  reader=$!
}

end_load() {
  local writer status=0
  touch /run/load-ends
  for writer in "${writers[@]}"; do
    wait "$writer" || { tail -30 /out/fio-writer*.txt; status=1; }
  done
  kill -INT $reader
  wait $reader
  grep -q 'err= 0' /out/fio-reader.txt || { tail -20 /out/fio-reader.txt; status=1; }
  return $status
}

no_error_was_seen() {
  local lines
  lines=$(dmesg | grep -ci 'I/O error' || true)
  [ "$lines" = 0 ] || { dmesg | tail -20; return 1; }
}

# A disk over tcm_loop whose commands may wait for as long as a start takes under emulation, beside other work.
disk_appears() {
  make_backstore qcow2 $disk_image $((512 * MiB)) || { cat /out/enable.txt; return 1; }
  patient=$backstore
  echo 180 >"$backstore/attrib/cmd_time_out" || return 1
  map_loop || return 1
  patient_loop=$loop
  disk=$device
  echo 180 >"/sys/block/${disk#/dev/}/device/timeout"
}

# Of a dead daemon's image: no corruption, and every mark that was flushed. Space may have leaked (status 3).
image_is_whole() {
  local status commands=() mark
  qemu-img check $disk_image >/out/check.txt 2>&1
  status=$?
  [ $status = 0 ] || [ $status = 3 ] || { echo "after kill $1: $status"; tail -20 /out/check.txt; return 1; }
  for mark in $(seq "$1"); do commands+=(-c "read -P $mark $((marks * MiB + mark * 65536)) 65536"); done
  qemu-io -r -f qcow2 "${commands[@]}" $disk_image >/out/marks.txt 2>&1 || { cat /out/marks.txt; return 1; }
  ! grep -q 'Pattern verification failed' /out/marks.txt || { echo "after kill $1:"; cat /out/marks.txt; return 1; }
}

# A piece of the disk with its number in every byte, flushed.
write_mark() {
  head -c 65536 /dev/zero | tr '\0' "\\$(printf %03o "$1")" |
    dd of="$disk" bs=64k seek=$((marks * 16 + $1)) oflag=direct conv=notrunc,fsync iflag=fullblock status=none
}

killed_under_load() {
  local round died
  begin_load "$disk"
  sleep 2
  for round in $(seq $kills); do
    write_mark "$round" || return 1
    sleep 1.5
    kill -0 "${writers[0]}" && kill -0 "${writers[1]}" && kill -0 $reader || { echo "no load before kill $round"; return 1; }
    kill -KILL $daemon
    wait $daemon 2>/dev/null
    died=$SECONDS
    image_is_whole "$round" || return 1
    sleep $((died + 4 > SECONDS ? died + 4 - SECONDS : 0))
    start_daemon || return 1
  done
  no_error_was_seen && [ "$(grep -c 'taken over' /out/daemon.log)" -ge $kills ]
}

# Ended as systemd ends it, with the same load: nobody sees an error, and nothing is lost.
ended_under_load() {
  stop_daemon || return 1
  qemu-img check $disk_image >/out/check.txt 2>&1 || [ $? = 3 ] || { tail -20 /out/check.txt; return 1; }
  sleep 2
  start_daemon || return 1
  sleep 3
  end_load && no_error_was_seen
}

# One write a time, each to a place of its own; what became of it, and when: "SECONDS BLOCK ok" in the file.
one_after_the_other() {
  local block status
  for block in $(seq 0 999); do
    [ -e /run/writes-end ] && return 0
    dd if=/mnt/pattern of="$1" bs=4k count=1 skip="$block" seek="$block" oflag=direct conv=notrunc status=none 2>/dev/null && status=ok || status=error
    echo "$SECONDS $block $status" >>"$2"
    sleep 0.3
  done
}

# Longer than the commands may wait (cmd_time_out, 30 s). Meanwhile somebody makes another device.
dead_for_long() {
  local began alive writer block creator errors
  make_backstore qcow2 $images/dead.qcow2 $((64 * MiB)) || return 1
  local impatient=$backstore
  map_loop || return 1
  local short=$device short_loop=$loop
  # Writes are to be ended by TCMU's timer: the disk's own, as long, would abort and repeat them.
  echo 120 >"/sys/block/${short#/dev/}/device/timeout"
  : >/out/writes.txt
  rm -f /run/writes-end
  one_after_the_other "$short" /out/writes.txt &
  writer=$!
  sleep 3
  kill -KILL $daemon
  wait $daemon 2>/dev/null
  began=$SECONDS
  sleep 60
  (make_backstore vmdk $images/new.vmdk $((16 * MiB)) && echo made >/out/waiting.txt) &
  creator=$!
  made=$((made + 1))
  sleep 15
  start_daemon || return 1
  alive=$SECONDS
  wait $creator
  grep -q made /out/waiting.txt && grep -q 'new.vmdk.*' /out/daemon.log && grep -q 'after its creator had waited' /out/daemon.log ||
    { echo 'the device made meanwhile was not completed'; return 1; }
  sleep 8
  touch /run/writes-end
  wait $writer
  errors=$(grep -c error /out/writes.txt)
  echo "writes: $(grep -c ok /out/writes.txt) fine, $errors failed; dead from $began to $alive s"
  # What failed was sent while nobody served; what comes after is as before.
  [ "$errors" -ge 1 ] || { echo 'no write failed'; return 1; }
  awk -v from=$((began + 25)) -v to=$((alive + 2)) '$3 == "error" && ($1 < from || $1 > to)' /out/writes.txt | grep . && return 1
  [ "$(awk -v from="$alive" '$1 > from && $3 == "ok"' /out/writes.txt | wc -l)" -ge 5 ] || { tail -20 /out/writes.txt; return 1; }
  for block in $(awk '$3 == "ok" {print $2}' /out/writes.txt); do
    cmp -s <(dd if="$short" bs=4k skip="$block" count=1 iflag=direct status=none) <(dd if=/mnt/pattern bs=4k skip="$block" count=1 status=none) ||
      { echo "block $block is not what was written"; return 1; }
  done
  [ "$(cat "/sys/block/${short#/dev/}/device/state")" = running ] || return 1
  verified_load recovered "$short" 16 8 || { tail -20 /out/fio-recovered.txt; return 1; }
  unmap_loop "$short_loop" && remove_backstore "$impatient" && remove_backstore "$target/core/user_$made/disk$made"
}

all_is_taken_down() {
  unmap_loop "$patient_loop" && remove_backstore "$patient" && stop_daemon || return 1
  image_is_whole $kills || return 1
  # Space that was being allocated when it was killed may have leaked, nothing else; given back, the image is clean.
  lunette check -q -r leaks $disk_image || [ $? = 3 ] || return 1
  qemu-img check $disk_image && qemu-img check $images/dead.qcow2
}

step disk_appears
step killed_under_load
step ended_under_load
step dead_for_long
step all_is_taken_down
exit $failed
