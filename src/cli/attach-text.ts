import { isLoopback } from '../daemon/address.ts';
import type { ImageServer } from '../daemon/image-server.ts';

/** How initiators attach to what is served: a few lines for people. */
export function howToAttach(server: Pick<ImageServer, 'images' | 'address'>, withChap: boolean): string {
  const [first] = server.images;
  if (first === undefined) return '';
  const url = new URL(first.url.replace(/^iscsi:/, 'http:'));
  const portal = first.url.slice('iscsi://'.length).split('/')[0] as string;
  const host = url.hostname.replace(/^\[|\]$/g, '');
  const port = portal.slice(portal.lastIndexOf(':') + 1);
  const login = withChap ? 'USER%SECRET@' : '';
  const withLogin = first.url.replace('iscsi://', `iscsi://${login}`);
  const chap = withChap
    ? [
        `           sudo iscsiadm -m node -T ${first.target} -p ${portal} -o update -n node.session.auth.authmethod -v CHAP`,
        '           and the same with -n node.session.auth.username and -n node.session.auth.password',
      ]
    : [];
  const windowsChap = withChap ? ' -AuthenticationType ONEWAYCHAP -ChapUsername USER -ChapSecret SECRET' : '';
  return `${[
    '',
    'To attach:',
    `  libiscsi iscsi-ls -s iscsi://${login}${portal}`,
    `  QEMU     qemu-system-x86_64 -m 1G -drive file=${withLogin},format=raw,if=virtio`,
    `  Linux    sudo iscsiadm -m discovery -t sendtargets -p ${portal}`,
    ...chap,
    `           sudo iscsiadm -m node -T ${first.target} -p ${portal} --login`,
    `  Windows  New-IscsiTargetPortal -TargetPortalAddress ${host} -TargetPortalPortNumber ${port}`,
    `           Connect-IscsiTarget -NodeAddress ${first.target}${windowsChap}`,
    ...(isLoopback(server.address.host)
      ? ['From other machines: --listen 0.0.0.0:3260 with --chap USER --chap-secret-file FILE.']
      : []),
    'Ctrl-C ends it.',
    '',
  ].join('\n')}\n`;
}
