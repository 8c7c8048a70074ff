# Every image of /mnt/images over tcm_loop: read, written to in pieces, discarded in part, read again. The list has a line for each:
# HANDLER FILE SIZE. What was read goes to /out as checksums, the images go there afterwards.
. "$(dirname "$0")/configfs.sh"
set -u
start_daemon || exit 1

# Pieces in 512-byte blocks, as in images.test.ts: START LENGTH. None of them is a whole cluster.
pieces="1:3 127:2 2048:129 8191:2 12000:700"

check_image() {
  local handler=$1 file=$2 size=$3 name start length
  name=$(basename "$file")
  make_backstore "$handler" "/mnt/images/$file" "$size" || { cat /out/enable.txt; return 1; }
  map_loop || return 1
  md5sum <"$device" | cut -d' ' -f1 >"/out/$name.before"
  for piece in $pieces; do
    start=$((${piece%:*} * 512)) length=$((${piece#*:} * 512))
    # The longest in writes of 100 blocks, some of which cross from one cluster into the next; the others block by block.
    dd if=/mnt/pattern of="$device" bs=$((length % 51200 == 0 ? 51200 : 512)) skip=$start seek=$start count=$length \
      iflag=skip_bytes,count_bytes oflag=direct,seek_bytes conv=notrunc status=none || return 1
  done
  # Two clusters of 64 KiB: they read as zeros then, whatever was there.
  blkdiscard -z -o 5242880 -l 131072 "$device" || return 1
  sync "$device"
  blockdev --flushbufs "$device"
  md5sum <"$device" | cut -d' ' -f1 >"/out/$name.after"
  unmap_loop "$loop" && remove_backstore "$backstore"
}

# One image's snapshot and its live state at once, as two disks: what is written to one is not in the other.
snapshot_beside_live() {
  local image=/mnt/images/both.qcow2 live live_loop live_store before
  make_backstore qcow2 $image 16777216 || { cat /out/enable.txt; return 1; }
  map_loop || return 1
  live=$device live_loop=$loop live_store=$backstore
  make_backstore qcow2 "$image;snapshot=before" 16777216 || { cat /out/enable.txt; return 1; }
  map_loop || return 1
  before=$(dd if="$device" bs=1M iflag=direct status=none | md5sum)
  [ "$before" = "$(dd if="$live" bs=1M iflag=direct status=none | md5sum)" ] || { echo 'they begin differently'; return 1; }
  dd if=/mnt/pattern of="$live" bs=1M count=8 seek=4 oflag=direct conv=notrunc,fsync status=none || return 1
  [ "$before" = "$(dd if="$device" bs=1M iflag=direct status=none | md5sum)" ] || { echo 'the snapshot has changed'; return 1; }
  cmp <(dd if="$live" bs=1M skip=4 count=8 iflag=direct status=none) <(head -c 8M /mnt/pattern) || return 1
  [ "$(blockdev --getro "$device")" = 1 ] || { echo 'the snapshot can be written to'; return 1; }
  unmap_loop "$loop" && remove_backstore "$backstore" && unmap_loop "$live_loop" && remove_backstore "$live_store"
}

# Who else has the image: another device, or QEMU. And the other way round.
one_writer_at_a_time() {
  local image=/mnt/images/locked.qcow2 first
  make_backstore qcow2 $image 8388608 || { cat /out/enable.txt; return 1; }
  first=$backstore
  ! make_backstore qcow2 $image 8388608 || { echo 'exported twice'; return 1; }
  grep -q 'open for writing already, as .*locked.qcow2' /out/daemon.log || { tail -3 /out/daemon.log; return 1; }
  ! qemu-io -f qcow2 -c 'write 0 64k' $image >/out/locked.txt 2>&1 || { echo 'QEMU can write to it'; return 1; }
  grep -q 'lock' /out/locked.txt || { cat /out/locked.txt; return 1; }
  remove_backstore "$first" || return 1
  # QEMU with the image open for writing, until its input ends.
  mkfifo /run/qemu-io
  qemu-io -f qcow2 $image </run/qemu-io >/out/qemu-io.txt 2>&1 &
  local qemu=$!
  exec 4>/run/qemu-io
  echo 'write -P 3 0 64k' >&4
  for _ in $(seq 200); do
    grep -q 'wrote 65536' /out/qemu-io.txt && break
    sleep 0.1
  done
  ! make_backstore qcow2 $image 8388608 || { echo 'exported while QEMU writes to it'; return 1; }
  exec 4>&-
  wait $qemu
  make_backstore qcow2 $image 8388608 && remove_backstore "$backstore"
}

while read -r handler file size; do
  step check_image "$handler" "$file" "$size"
done </mnt/list
step snapshot_beside_live
step one_writer_at_a_time
# What may not be served is refused when it is made.
while read -r handler file size; do
  if make_backstore "$handler" "/mnt/images/$file" "$size"; then echo "FAILED: $file was not refused"; failed=1; else echo "refused: $file $(cat /out/enable.txt)"; fi
done </mnt/refused
stop_daemon || failed=1
mkdir -p /out/images
cp --sparse=always /mnt/images/* /out/images/
exit $failed
