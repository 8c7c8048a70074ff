import type { BackstoreRequest } from './request.ts';
import { mkdir, type Step, write, writeOptional } from './step.ts';

/** What initiators may send at once, sectors: LIO's default is 64 KiB, which costs large transfers a third of their speed. */
const MAX_SECTORS = 2048;

/**
 * The steps that make one TCMU backstore, as rtslib makes it, so that targetcli shows and saves it. The write to `enable` returns when
 * whoever serves TCMU devices on this machine has opened it, or says why not.
 *
 * @param hba a directory of its own that exists, `core/user_N`: rtslib knows one backstore for each
 */
export function backstoreSteps(hba: string, request: BackstoreRequest): Step[] {
  const path = `${hba}/${request.name}`;
  const control = `${path}/control`;
  return [
    mkdir(path),
    write(control, `dev_config=${request.config}`),
    write(control, `dev_size=${request.size}`),
    write(control, `hw_block_size=${request.blockSize}`),
    write(control, `hw_max_sectors=${MAX_SECTORS}`),
    write(`${path}/enable`, '1'),
    write(`${path}/wwn/vpd_unit_serial`, request.serial),
    // Aborts of initiators reach whoever serves the device. Kernels before 5.10 have none.
    writeOptional(`${path}/attrib/tmr_notification`, '1'),
  ];
}
