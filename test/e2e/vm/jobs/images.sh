# Every image of /mnt/images over tcm_loop: read, written to in pieces, discarded in part, read again. The list has a line for each:
# HANDLER FILE SIZE. What was read goes to /out as checksums, the images go there afterwards.
. "$(dirname "$0")/configfs.sh"
set -u
start_daemon || exit 1

# Pieces in 512-byte blocks, as in images.test.ts: START LENGTH. None of them is a whole cluster.
pieces="1:3 127:2 2048:129 8191:2 12000:700"

check_image() {
  local handler=$1 file=$2 size=$3 name
  name=$(basename "$file")
  make_backstore "$handler" "/mnt/images/$file" "$size" || { cat /out/enable.txt; return 1; }
  map_loop || return 1
  md5sum <"$device" | cut -d' ' -f1 >"/out/$name.before"
  for piece in $pieces; do
    dd if=/mnt/pattern of="$device" bs=512 skip="${piece%:*}" seek="${piece%:*}" count="${piece#*:}" \
      oflag=direct conv=notrunc status=none || return 1
  done
  # Two clusters of 64 KiB: they read as zeros then, whatever was there.
  blkdiscard -z -o 5242880 -l 131072 "$device" || return 1
  sync "$device"
  blockdev --flushbufs "$device"
  md5sum <"$device" | cut -d' ' -f1 >"/out/$name.after"
  unmap_loop "$loop" && remove_backstore "$backstore"
}

while read -r handler file size; do
  step check_image "$handler" "$file" "$size"
done </mnt/list
# What may not be served is refused when it is made.
while read -r handler file size; do
  if make_backstore "$handler" "/mnt/images/$file" "$size"; then echo "FAILED: $file was not refused"; failed=1; else echo "refused: $file $(cat /out/enable.txt)"; fi
done </mnt/refused
stop_daemon || failed=1
mkdir -p /out/images
cp --sparse=always /mnt/images/* /out/images/
exit $failed
