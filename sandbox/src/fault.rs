//! What the evaluator is told of a policy's fault: its kind. The text stays with the host, which has
//! the log and the trace.

use rules::policy::PolicyFault;

use crate::policy::Fault;

impl Fault {
    pub fn kind(&self) -> PolicyFault {
        match self {
            Fault::Trap(_) => PolicyFault::Trap,
            Fault::Fuel => PolicyFault::Fuel,
            Fault::Deadline => PolicyFault::Deadline,
            Fault::Memory => PolicyFault::Memory,
            Fault::Input(_) => PolicyFault::Input,
            Fault::Output(_) => PolicyFault::Output,
            Fault::Busy => PolicyFault::Busy,
            Fault::Open => PolicyFault::Open,
        }
    }
}
