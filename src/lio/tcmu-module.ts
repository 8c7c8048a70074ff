import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const MODULE = '/sys/module/target_core_user';

/** Whether the kernel module target_core_user is there. */
export function tcmuModuleIsLoaded(root = MODULE): boolean {
  return existsSync(root);
}

/** Adding, removing and changing devices fails with EAGAIN while blocked. Absent in kernels before 5.2: then nothing is done. */
export async function blockNetlink(blocked: boolean, root = MODULE): Promise<void> {
  await setParameter(root, 'block_netlink', blocked ? 1 : 0);
}

/** Whoever waits for an answer of ours gets EINTR instead. Only while blocked. */
export async function abortNetlinkWaiters(root = MODULE): Promise<void> {
  await setParameter(root, 'reset_netlink', 1);
}

/** Both, and open again. */
export async function freeNetlinkWaiters(root = MODULE): Promise<void> {
  await blockNetlink(true, root);
  try {
    await abortNetlinkWaiters(root);
  } finally {
    await blockNetlink(false, root);
  }
}

async function setParameter(root: string, name: string, value: number): Promise<void> {
  const file = join(root, 'parameters', name);
  if (existsSync(file)) await writeFile(file, String(value));
}
