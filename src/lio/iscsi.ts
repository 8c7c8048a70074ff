import type { ChapRequest, IscsiRequest } from './request.ts';
import { link, mkdir, mkdirShared, type Step, write } from './step.ts';

/**
 * A target of the kernel's iSCSI fabric over backstores that exist.
 *
 * Without initiators named, anybody may log in and write (demo mode, as targetcli calls it): the ACLs are made by the kernel then.
 *
 * @param backstores their directories, LUN 0 first
 */
export function iscsiSteps(request: IscsiRequest, backstores: readonly string[]): Step[] {
  const target = `iscsi/${request.iqn}`;
  const tpg = `${target}/tpgt_1`;
  const open = request.initiators.length === 0;
  const address = request.host.includes(':') ? `[${request.host}]` : request.host;
  // Making the fabric's directory loads its module.
  const steps = [mkdirShared('iscsi'), mkdir(target), mkdir(tpg), mkdir(`${tpg}/np/${address}:${request.port}`)];
  backstores.forEach((backstore, lun) => {
    // Any name will do for the link; targetcli makes ten digits of its own.
    steps.push(mkdir(`${tpg}/lun/lun_${lun}`), link(`${tpg}/lun/lun_${lun}/lunette`, backstore));
  });
  const attributes = {
    authentication: request.chap === undefined ? '0' : '1',
    demo_mode_write_protect: open && !request.readOnly ? '0' : '1',
    generate_node_acls: open ? '1' : '0',
    cache_dynamic_acls: open ? '1' : '0',
  };
  for (const [name, value] of Object.entries(attributes)) steps.push(write(`${tpg}/attrib/${name}`, value));
  if (request.chap !== undefined && open) steps.push(...chapSteps(`${tpg}/auth`, request.chap));
  for (const initiator of request.initiators) {
    const acl = `${tpg}/acls/${initiator}`;
    steps.push(mkdir(acl));
    backstores.forEach((_backstore, lun) => {
      const mapped = `${acl}/lun_${lun}`;
      steps.push(mkdir(mapped), link(`${mapped}/lunette`, `${tpg}/lun/lun_${lun}`));
      if (request.readOnly) steps.push(write(`${mapped}/write_protect`, '1'));
    });
    if (request.chap !== undefined) steps.push(...chapSteps(`${acl}/auth`, request.chap));
  }
  return [...steps, write(`${tpg}/enable`, '1', '0')];
}

function chapSteps(path: string, chap: ChapRequest): Step[] {
  const steps = [write(`${path}/userid`, chap.user), write(`${path}/password`, chap.secret)];
  if (chap.mutualUser === undefined || chap.mutualSecret === undefined) return steps;
  return [
    ...steps,
    write(`${path}/userid_mutual`, chap.mutualUser),
    write(`${path}/password_mutual`, chap.mutualSecret),
  ];
}
