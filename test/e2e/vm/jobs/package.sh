# The Debian package on a machine with systemd: put in tcmu-runner's place, used, killed, configured, removed. /mnt has lunette.deb and images.
. "$(dirname "$0")/configfs.sh"
set -u
export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0
images=/var/lib/lunette/images
# Of what it installs or makes, these places must be free of it in the end.
places="/usr/lib/lunette /usr/bin/lunette /etc/lunette /etc/systemd/system /lib/systemd/system /etc/dbus-1 /usr/share/dbus-1 /usr/share/man/man1
  /usr/share/doc/lunette /var/lib/lunette /var/lib/systemd/deb-systemd-helper-enabled"
# shellcheck disable=SC2086
in_places() { find $places 2>/dev/null | grep -i 'lunette\|TCMUService1' | sort; }
# Synchronizing each of its files takes minutes here, on a file system in memory; so does an index of all manual pages.
rm -f /var/lib/man-db/auto-update
quick_dpkg() { timeout 900 dpkg --force-unsafe-io "$@" >/out/dpkg.txt 2>&1; }

show() { systemctl show lunette.service -p "$1" --value; }
is_active() { [ "$(systemctl is-active lunette.service)" = active ]; }
why() {
  systemctl status lunette.service --no-pager -l | head -30
  journalctl -u lunette.service -n 15 --no-pager
}
# Until it serves again, and by another process than $1.
wait_until_active() {
  for _ in $(seq 900); do
    is_active && [ "$(show MainPID)" != "$1" ] && return 0
    sleep 0.1
  done
  why
  return 1
}

it_does_not_come_beside_tcmu_runner() {
  ! quick_dpkg -i /mnt/lunette.deb || { echo 'installed beside tcmu-runner'; return 1; }
  grep -q 'tcmu-runner' /out/dpkg.txt || { cat /out/dpkg.txt; return 1; }
  quick_dpkg --purge tcmu-runner || { cat /out/dpkg.txt; return 1; }
  [ -z "$(in_places)" ] || { in_places; return 1; }
}

# Type=notify: started means that it serves.
installation_starts_it() {
  quick_dpkg -i /mnt/lunette.deb || { cat /out/dpkg.txt; why; return 1; }
  is_active || { cat /out/dpkg.txt; why; return 1; }
  [ "$(systemctl is-enabled lunette.service)" = enabled ] || return 1
  [ "$(show Type)" = notify ] && [ "$(show Restart)" = always ] && [ "$(show StatusText)" != '' ] || return 1
  cp /mnt/images/* $images/
}

# What the unit says about others, as systemd reads it.
unit_is_in_its_place() {
  local verdict word
  verdict=$(systemd-analyze verify --man=no /lib/systemd/system/lunette.service 2>&1 | grep -i lunette)
  [ -z "$verdict" ] || { echo "$verdict"; return 1; }
  for word in target.service rtslib-fb-targetctl.service; do
    grep -qw "$word" <<<"$(show Before)" || { echo "not before $word"; return 1; }
  done
  grep -qw tcmu-runner.service <<<"$(show Conflicts)" || return 1
  grep -qw sys-kernel-config.mount <<<"$(show After)" || return 1
  [ "$(show NoNewPrivileges)" = yes ] && [ "$(show ProtectSystem)" = strict ] && [ "$(show ProtectKernelTunables)" = no ] || return 1
  grep -q $images <<<"$(show ReadWritePaths)" || { show ReadWritePaths; return 1; }
}

documentation_is_there() {
  mandoc -Tlint -Werror /usr/share/man/man1/lunette.1.gz >/out/mandoc.txt || { head -5 /out/mandoc.txt; return 1; }
  zcat /usr/share/man/man1/lunette.1.gz | grep -q 'lunette.daemon' || return 1
  lunette_of_package daemon --print-drop-in --config /etc/lunette/lunette.toml | grep -q "ReadWritePaths=-$images" || return 1
  lunette_of_package doctor >/out/doctor.txt || { cat /out/doctor.txt; return 1; }
  grep -q 'ok.*native addon' /out/doctor.txt && grep -q 'ok.*D-Bus system bus' /out/doctor.txt || { cat /out/doctor.txt; return 1; }
}
lunette_of_package() { /usr/bin/lunette "$@"; }

ask() {
  dbus-send --system --print-reply --dest=org.kernel.TCMUService1 /org/kernel/TCMUService1/qcow2 org.kernel.TCMUService1.CheckConfig \
    string:"qcow2/$1" 2>&1
}
only_root_is_answered() {
  ask $images/disk.qcow2 | grep -q 'boolean true' || { ask $images/disk.qcow2; return 1; }
  ask $images/missing.qcow2 | grep -q 'no such file' || { ask $images/missing.qcow2; return 1; }
  for file in $images/disk.qcow2 $images/missing.qcow2; do
    setpriv --reuid=nobody --regid=nogroup --clear-groups bash -c "$(declare -f ask); ask $file" | grep -q AccessDenied ||
      { echo "nobody is answered about $file"; return 1; }
  done
  ! setpriv --reuid=nobody --regid=nogroup --clear-groups dbus-send --system --print-reply --dest=org.freedesktop.DBus / \
    org.freedesktop.DBus.RequestName string:org.kernel.TCMUService1.HandlerManager1.evil uint32:0 >/dev/null 2>&1
}

targetcli_uses_it() {
  qemu-img create -q -f qcow2 /opt/outside.qcow2 64M
  timeout 200 targetcli >/out/targetcli.txt 2>&1 <<CLI
/backstores/user:qcow2 create name=disk size=64M cfgstring=$images/disk.qcow2
/backstores/user:qcow2 create name=outside size=64M cfgstring=/opt/outside.qcow2
exit
CLI
  grep -q 'Created user-backed storage object disk' /out/targetcli.txt || { cat /out/targetcli.txt; why; return 1; }
  # Files that the service may not read or write, for the file system is read-only to it, or the configuration does not name their place.
  grep -q 'cfgstring invalid: .*read-only file system.*/opt/outside.qcow2' /out/targetcli.txt || { cat /out/targetcli.txt; return 1; }
  backstore=$(ls -d $target/core/user_*/disk)
  map_loop || return 1
  dd if=/mnt/pattern of="$device" bs=64k oflag=direct conv=notrunc,fsync status=none || return 1
}

systemd_starts_it_again() {
  local pid
  pid=$(show MainPID)
  kill -KILL "$pid"
  wait_until_active "$pid" || return 1
  cmp <(dd if="$device" bs=64k count=16 iflag=direct status=none) <(head -c 1M /mnt/pattern) || return 1
  ! dmesg | grep -qi 'I/O error'
}

# An export is added to the configuration, and served after a reload.
configuration_is_followed() {
  cat >>/etc/lunette/lunette.toml <<TOML
[[export]]
name = "side"
image = "$images/side.qcow2"
transport = "nbd"
TOML
  systemctl reload lunette.service || { why; return 1; }
  for _ in $(seq 300); do
    qemu-img info nbd://127.0.0.1/side 2>/dev/null | grep -q '16 MiB' && return 0
    sleep 0.1
  done
  why
  return 1
}

ended_it_leaves_disks_waiting() {
  timeout 60 systemctl stop lunette.service || return 1
  [ "$(show Result)" = success ] || { why; return 1; }
  (dd if="$device" of=/out/read.raw bs=64k count=1 iflag=direct status=none) &
  local reader=$!
  sleep 1
  # Asked for over the bus it comes by itself. The bus waits for 25 s, which may be too short under emulation.
  for _ in $(seq 8); do
    dbus-send --system --print-reply --dest=org.kernel.TCMUService1 /org/kernel/TCMUService1 \
      org.freedesktop.DBus.ObjectManager.GetManagedObjects >/out/objects.txt 2>&1 && break
  done
  grep -q '/org/kernel/TCMUService1/vmdk' /out/objects.txt || { cat /out/objects.txt; why; return 1; }
  wait $reader && cmp /out/read.raw <(head -c 64K /mnt/pattern)
}

nothing_is_left_of_it() {
  unmap_loop "$loop" && remove_backstore "$backstore" || return 1
  quick_dpkg --remove lunette || { cat /out/dpkg.txt; return 1; }
  ! is_active && [ ! -e /usr/lib/lunette ] && [ ! -e /usr/bin/lunette ] || return 1
  [ -e /etc/lunette/lunette.toml ] && [ -e $images/disk.qcow2 ] || { echo 'what the administrator has is gone'; return 1; }
  ! ls /etc/systemd/system/multi-user.target.wants 2>/dev/null | grep lunette || return 1
  # It was killed once: what was laid in for new clusters may have leaked, which does no harm.
  qemu-img check -q $images/disk.qcow2 >/out/check.txt 2>&1 || [ $? = 3 ] || { tail -20 /out/check.txt; return 1; }
  qemu-img check -q -r leaks $images/disk.qcow2 && qemu-img check -q $images/disk.qcow2 || return 1
  rm $images/*
  quick_dpkg --purge lunette || { cat /out/dpkg.txt; return 1; }
  local left
  left=$(in_places)
  [ -z "$left" ] || { echo "left: $left"; return 1; }
}

step it_does_not_come_beside_tcmu_runner
step installation_starts_it
step unit_is_in_its_place
step documentation_is_there
step only_root_is_answered
step targetcli_uses_it
step systemd_starts_it_again
step configuration_is_followed
step ended_it_leaves_disks_waiting
step nothing_is_left_of_it
exit $failed
