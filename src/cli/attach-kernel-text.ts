import type { KernelExport } from '../daemon/kernel-export.ts';

/** How initiators attach to what the kernel serves: a few lines for people. */
export function howToAttachKernel(server: Pick<KernelExport, 'targets' | 'images'>): string {
  const [target] = server.targets;
  const [image] = server.images;
  if (target === undefined || image === undefined) return '';
  if (target.fabric === 'loopback') {
    return `\n${image.url} is a disk of this machine. Unmount it before this program ends. Ctrl-C ends it.\n\n`;
  }
  const portal = `${target.host.includes(':') ? `[${target.host}]` : target.host}:${target.port}`;
  return `${[
    '',
    'To attach (the target is the kernel’s):',
    `  libiscsi iscsi-ls -s iscsi://${portal}`,
    `  Linux    sudo iscsiadm -m discovery -t sendtargets -p ${portal}`,
    `           sudo iscsiadm -m node -T ${target.iqn} -p ${portal} --login`,
    'Ctrl-C ends it, and takes the target down.',
    '',
  ].join('\n')}\n`;
}
